//! What has been measured, row by row: for people and for programs.

use serde_json::{Value, json};

use crate::ops::Op;
use crate::roofline::Roofline;
use crate::sets::GradientSet;
use crate::statistics::Quartiles;
use crate::table::Table;
use crate::timing::{Timing, Workload};

/// Where something ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The GPU path.
    Gpu,
    /// The CPU path.
    Cpu,
}

impl Path {
    /// Returns the name that rows show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
        }
    }
}

/// One measurement of one set of gradients.
#[derive(Debug)]
pub struct Row {
    /// Where it ran.
    pub path: Path,
    /// How the gradients lay in memory.
    pub layout: &'static str,
    /// What was timing.
    pub workload: Workload,
    /// What it took.
    pub timing: Timing,
    /// What the rooflines of the same path take for the same passes over as many bytes.
    pub roofline: f64,
    /// Whose clock: `gpu` or `wall`.
    pub clock: &'static str,
    /// Whether a cache may have held the gradients.
    pub cached: bool,
    /// Of a plan; the CPU path has none.
    pub cost: Option<PlanCost>,
}

/// What a plan costs besides the time that it runs.
#[derive(Debug)]
pub struct PlanCost {
    /// The dispatches of a step.
    pub dispatches: usize,
    /// The memory that the plan holds besides the gradients.
    pub scratch_bytes: u64,
    /// The time to prepare the plan again, with all kernels compiled.
    pub prepare: Quartiles,
}

/// The rows of one set.
#[derive(Debug)]
pub struct SetReport {
    /// The set.
    pub set: GradientSet,
    /// What was measured.
    pub rows: Vec<Row>,
    /// What was not measured, and why.
    pub skipped: Vec<(Path, String)>,
}

/// Returns the name that `--only` selects by.
pub fn id(path: Path, set: &GradientSet, layout: &str, workload: Workload) -> String {
    format!("{}/{}/{}/{layout}/{}", path.name(), set.name, dtype(set), workload.name())
}

/// Returns the element type of a set, as rows show it.
pub fn dtype(set: &GradientSet) -> String {
    format!("{:?}", set.dtype).to_lowercase()
}

impl Row {
    /// Returns the median, in seconds.
    pub const fn seconds(&self) -> f64 {
        self.timing.seconds.median
    }

    /// Returns the fewest bytes that have to move, over the time.
    pub fn gb_per_s(&self, set: &GradientSet) -> f64 {
        self.workload.bytes(set.bytes()) as f64 / self.seconds() / 1e9
    }

    /// Returns the time of the roofline, in percent of the time.
    pub fn percent(&self) -> f64 {
        100.0 * self.roofline / self.seconds()
    }

    /// Returns the row as a JSON object.
    pub fn json(&self, set: &GradientSet) -> Value {
        let Timing { seconds, wall, encode, ready } = self.timing;
        let cost = self.cost.as_ref();
        json!({
            "kind": if matches!(self.workload, Workload::Op(_)) { "operation" } else { "roofline" },
            "library": "gradclip",
            "path": self.path.name(),
            "set": set.name,
            "dtype": dtype(set),
            "layout": self.layout,
            "operation": self.workload.name(),
            "tensors": set.lens.len(),
            "tensors_of_model": set.of,
            "elements": set.elements(),
            "cached": self.cached,
            "clock": self.clock,
            "seconds": seconds.median,
            "seconds_low": seconds.low,
            "seconds_high": seconds.high,
            "repetitions": seconds.count,
            "wall_seconds": wall.median,
            "encode_seconds": encode.map(|encode| encode.median),
            "ready_seconds": ready.map(|ready| ready.median),
            "bytes": self.workload.bytes(set.bytes()),
            "gb_per_s": self.gb_per_s(set),
            "roofline_seconds": self.roofline,
            "percent_of_roofline": self.percent(),
            "dispatches": cost.map(|cost| cost.dispatches),
            "scratch_bytes": cost.map(|cost| cost.scratch_bytes),
            "prepare_seconds": cost.map(|cost| cost.prepare.median),
        })
    }
}

impl SetReport {
    fn name(&self) -> String {
        let GradientSet { name, lens, of, .. } = &self.set;
        if lens.len() == *of { name.clone() } else { format!("{name}, {} of {of} tensors", lens.len()) }
    }

    /// Finds a row.
    pub fn find(&self, path: Path, layout: &str, workload: Workload) -> Option<&Row> {
        self.rows.iter().find(|row| row.path == path && row.layout == layout && row.workload == workload)
    }

    /// The ways in which operations ran: a path and a layout each.
    fn ways(&self) -> Vec<(Path, &'static str)> {
        let mut ways = Vec::new();
        for row in self.rows.iter().filter(|row| matches!(row.workload, Workload::Op(_))) {
            if !ways.contains(&(row.path, row.layout)) {
                ways.push((row.path, row.layout));
            }
        }
        ways
    }

    /// What takes how many times as long as what.
    fn ratios(&self, path: Path, layout: &'static str) -> Ratios {
        let op = |op| self.find(path, layout, Workload::Op(op)).map(Row::seconds);
        let roofline = |roofline| {
            let mut rows = self.rows.iter().filter(|row| row.path == path);
            rows.find(|row| row.workload == Workload::Roofline(roofline)).map(Row::seconds)
        };
        let over = |one: Option<f64>, other: Option<f64>| Some(one? / other?);
        let norm = op(Op::Norm);
        let arena = self.find(path, "arena", Workload::Op(Op::Norm)).map(Row::seconds);
        Ratios {
            not_exceeded: over(op(Op::NotExceeded), norm),
            coefficient_only: over(op(Op::CoefficientOnly), norm),
            exceeded: over(op(Op::Exceeded), norm.zip(roofline(Roofline::InPlace)).map(|(a, b)| a + b)),
            clamp: over(op(Op::Clamp), roofline(Roofline::InPlace)),
            loss_scale: over(op(Op::LossScale), op(Op::Exceeded)),
            separate: over(norm, arena).filter(|_| layout == "separate"),
        }
    }
}

/// The numbers that the design stands or falls with.
struct Ratios {
    /// A clip within its limit, over the norm.
    not_exceeded: Option<f64>,
    coefficient_only: Option<f64>,
    /// A clip beyond its limit, over the norm and one in-place pass.
    exceeded: Option<f64>,
    /// Over one in-place pass.
    clamp: Option<f64>,
    /// Over the clip without it.
    loss_scale: Option<f64>,
    /// The norm of separate buffers, over that of one arena.
    separate: Option<f64>,
}

impl Ratios {
    const NAMES: [&'static str; 6] = [
        "not exceeded / norm",
        "coefficient only / norm",
        "exceeded / (norm + in place)",
        "clamp / in place",
        "loss scale / exceeded",
        "norm: separate / arena",
    ];

    const fn all(&self) -> [Option<f64>; 6] {
        [self.not_exceeded, self.coefficient_only, self.exceeded, self.clamp, self.loss_scale, self.separate]
    }
}

/// Returns all rows, the sets that were skipped, and the ratios, as JSON objects.
pub fn json(all: &[SetReport]) -> Vec<Value> {
    let mut lines = Vec::new();
    for measured in all {
        let SetReport { set, rows, skipped } = measured;
        lines.extend(rows.iter().map(|row| row.json(set)));
        lines.extend(skipped.iter().map(|(path, why)| {
            json!({ "kind": "skipped", "path": path.name(), "set": set.name, "dtype": dtype(set), "why": why })
        }));
        for (path, layout) in measured.ways() {
            let mut line = json!({
                "kind": "ratios", "path": path.name(), "set": set.name, "dtype": dtype(set), "layout": layout,
            });
            for (name, ratio) in Ratios::NAMES.into_iter().zip(measured.ratios(path, layout).all()) {
                line[name] = json!(ratio);
            }
            lines.push(line);
        }
    }
    lines
}

/// Returns all rows and ratios as tables.
pub fn table(all: &[SetReport]) -> String {
    let gpu = all.iter().flat_map(|measured| &measured.rows).any(|row| row.path == Path::Gpu);
    let mut tables = vec![times(all, gpu)];
    if gpu {
        tables.push(plans(all));
    }
    tables.push(ratios(all, gpu));
    let skipped = all.iter().flat_map(|measured| {
        let name = format!("{} {}", measured.set.name, dtype(&measured.set));
        measured
            .skipped
            .iter()
            .map(move |(path, why)| format!("{name} was not measured on the {}: {why}\n", path.name()))
    });
    tables.iter().map(Table::to_string).collect::<Vec<_>>().join("\n") + &skipped.collect::<String>()
}

fn times(all: &[SetReport], gpu: bool) -> Table {
    let heading = ["set", "dtype", "path", "layout", "operation", "time", "spread", "GB/s", "roofline"];
    let own = gpu.then_some(["wall", "encode", "ready"]).into_iter().flatten();
    let mut table = Table::new(heading.into_iter().chain(own)).numbers_from(5);
    for measured in all {
        let set = &measured.set;
        for row in &measured.rows {
            let Timing { seconds, wall, encode, ready } = row.timing;
            let host =
                [Some(wall), encode, ready].map(|time| time.map_or("-".into(), |time| duration(time.median)));
            table.row(
                [
                    measured.name(),
                    dtype(set),
                    row.path.name().into(),
                    row.layout.into(),
                    row.workload.name().into(),
                    duration(seconds.median),
                    format!("{:.0} %", 100.0 * seconds.relative()),
                    significant(row.gb_per_s(set)),
                    format!("{:.0} %", row.percent()),
                ]
                .into_iter()
                .chain(host.into_iter().filter(|_| gpu)),
            );
        }
    }
    table
}

fn plans(all: &[SetReport]) -> Table {
    let heading =
        ["set", "dtype", "layout", "plan", "dispatches", "prepare again", "scratch", "of gradients"];
    let mut table = Table::new(heading).numbers_from(4);
    // The other plans are parts of the first; only a clamp has less.
    let shown = [Workload::Op(Op::Exceeded), Workload::Op(Op::Clamp)];
    for measured in all {
        for row in measured.rows.iter().filter(|row| shown.contains(&row.workload)) {
            let Some(cost) = &row.cost else { continue };
            table.row([
                measured.name(),
                dtype(&measured.set),
                row.layout.into(),
                row.workload.name().into(),
                cost.dispatches.to_string(),
                duration(cost.prepare.median),
                format!("{} B", cost.scratch_bytes),
                format!("{:.3} %", 100.0 * cost.scratch_bytes as f64 / measured.set.bytes() as f64),
            ]);
        }
    }
    table
}

fn ratios(all: &[SetReport], gpu: bool) -> Table {
    // The CPU path has one layout.
    let names = &Ratios::NAMES[..Ratios::NAMES.len() - usize::from(!gpu)];
    let heading = ["set", "dtype", "path", "layout"].into_iter().chain(names.iter().copied());
    let mut table = Table::new(heading).numbers_from(4);
    for measured in all {
        for (path, layout) in measured.ways() {
            let of = [measured.name(), dtype(&measured.set), path.name().into(), layout.into()];
            let ratios = measured.ratios(path, layout).all();
            let ratios = ratios.map(|ratio| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")));
            table.row(of.into_iter().chain(ratios).take(4 + names.len()));
        }
    }
    table
}

/// Formats a time with a unit that fits.
pub fn duration(seconds: f64) -> String {
    match seconds {
        ..1e-3 => format!("{} µs", significant(seconds * 1e6)),
        ..1.0 => format!("{} ms", significant(seconds * 1e3)),
        _ => format!("{} s", significant(seconds)),
    }
}

/// Formats a number with three digits or more.
pub fn significant(x: f64) -> String {
    match x {
        ..10.0 => format!("{x:.2}"),
        ..100.0 => format!("{x:.1}"),
        _ => format!("{x:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_fitting_unit() {
        for (seconds, text) in
            [(1.234_5e-6, "1.23 µs"), (0.000_999, "999 µs"), (0.045_67, "45.7 ms"), (12.0, "12.0 s")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
