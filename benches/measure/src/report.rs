//! The report: one row per workload of a set, as text tables and as JSON lines.

use serde_json::{Value, json};

use crate::ops::Op;
use crate::roofline::Roofline;
use crate::sets::GradientSet;
use crate::statistics::Quartiles;
use crate::table::Table;
use crate::timing::{Timing, Workload};

/// The path that ran a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The GPU path.
    Gpu,
    /// The CPU path.
    Cpu,
}

impl Path {
    /// Returns the name that the report uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
        }
    }
}

/// The measurement of one workload on one set.
#[derive(Debug)]
pub struct Row {
    /// The path that ran the workload.
    pub path: Path,
    /// The memory layout: `arena`, `separate`, `array` or `slices`.
    pub layout: &'static str,
    /// The timed workload.
    pub workload: Workload,
    /// The measured times.
    pub timing: Timing,
    /// The time in seconds of the rooflines of the same path, for the same passes over the same number of bytes.
    pub roofline_seconds: f64,
    /// The clock that timed the row: `gpu` or `wall`.
    pub clock: &'static str,
    /// Whether caches may have held the gradients.
    pub cached: bool,
    /// The cost of the plan. `None` on the CPU path, which has no plans.
    pub cost: Option<PlanCost>,
}

/// The dispatches, scratch memory and preparation time of a plan.
#[derive(Debug)]
pub struct PlanCost {
    /// The dispatches per step.
    pub dispatches: usize,
    /// The bytes that the plan allocates besides the gradients.
    pub scratch_bytes: u64,
    /// The time to prepare the plan again, with all kernels compiled.
    pub prepare: Quartiles,
}

/// The results of one set.
#[derive(Debug)]
pub struct SetReport {
    /// The set.
    pub set: GradientSet,
    /// The measured rows.
    pub rows: Vec<Row>,
    /// The paths that were not measured, with the reason.
    pub skipped: Vec<(Path, String)>,
}

/// Returns the ID that `--only` matches: `path/set/dtype/layout/operation`.
pub fn id(path: Path, set: &GradientSet, layout: &str, workload: Workload) -> String {
    format!("{}/{}/{}/{layout}/{}", path.name(), set.name, dtype(set), workload.name())
}

/// Returns the name of a set's element type, as the report uses it.
pub fn dtype(set: &GradientSet) -> String {
    format!("{:?}", set.dtype).to_lowercase()
}

impl Row {
    /// Returns the median time, in seconds.
    pub const fn seconds(&self) -> f64 {
        self.timing.seconds.median
    }

    /// Returns the minimum number of bytes that the workload moves, divided by the time, in GB/s.
    pub fn gb_per_s(&self, set: &GradientSet) -> f64 {
        self.workload.bytes(set.bytes()) as f64 / self.seconds() / 1e9
    }

    /// Returns the roofline's time in percent of the row's time.
    pub fn percent_of_roofline(&self) -> f64 {
        100.0 * self.roofline_seconds / self.seconds()
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
            "tensors_of_model": set.model_tensors,
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
            "roofline_seconds": self.roofline_seconds,
            "percent_of_roofline": self.percent_of_roofline(),
            "dispatches": cost.map(|cost| cost.dispatches),
            "scratch_bytes": cost.map(|cost| cost.scratch_bytes),
            "prepare_seconds": cost.map(|cost| cost.prepare.median),
        })
    }
}

impl SetReport {
    /// Returns the row of a workload.
    pub fn find(&self, path: Path, layout: &str, workload: Workload) -> Option<&Row> {
        self.rows.iter().find(|row| row.path == path && row.layout == layout && row.workload == workload)
    }

    /// Returns the pairs of path and layout that operations ran on.
    fn paths_and_layouts(&self) -> Vec<(Path, &'static str)> {
        let mut pairs = Vec::new();
        for row in self.rows.iter().filter(|row| matches!(row.workload, Workload::Op(_))) {
            if !pairs.contains(&(row.path, row.layout)) {
                pairs.push((row.path, row.layout));
            }
        }
        pairs
    }

    /// Returns the time ratios of the operations on one path and layout.
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
            separate: over(norm, arena).filter(|_| matches!(layout, "separate" | "array")),
        }
    }
}

/// The time ratios that the design limits.
struct Ratios {
    /// A clip that is not exceeded, over the norm.
    not_exceeded: Option<f64>,
    /// The coefficient only, over the norm.
    coefficient_only: Option<f64>,
    /// A clip that is exceeded, over the norm plus one in-place pass.
    exceeded: Option<f64>,
    /// A clamp, over one in-place pass.
    clamp: Option<f64>,
    /// An exceeded clip with a loss scale, over one without.
    loss_scale: Option<f64>,
    /// The norm of separate buffers, bound separately or as an array, over the norm of one arena.
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

/// Returns the rows, skipped sets and ratios as JSON objects.
pub fn json(all: &[SetReport]) -> Vec<Value> {
    let mut lines = Vec::new();
    for set_report in all {
        let SetReport { set, rows, skipped } = set_report;
        lines.extend(rows.iter().map(|row| row.json(set)));
        lines.extend(skipped.iter().map(|(path, why)| {
            json!({ "kind": "skipped", "path": path.name(), "set": set.name, "dtype": dtype(set), "why": why })
        }));
        for (path, layout) in set_report.paths_and_layouts() {
            let mut line = json!({
                "kind": "ratios", "path": path.name(), "set": set.name, "dtype": dtype(set), "layout": layout,
            });
            for (name, ratio) in Ratios::NAMES.into_iter().zip(set_report.ratios(path, layout).all()) {
                line[name] = json!(ratio);
            }
            lines.push(line);
        }
    }
    lines
}

/// Formats the rows, plans and ratios as text tables.
pub fn table(all: &[SetReport]) -> String {
    let gpu = all.iter().flat_map(|set_report| &set_report.rows).any(|row| row.path == Path::Gpu);
    let mut tables = vec![times(all, gpu)];
    if gpu {
        tables.push(plans(all));
    }
    tables.push(ratios(all, gpu));
    let skipped = all.iter().flat_map(|set_report| {
        let name = format!("{} {}", set_report.set.name, dtype(&set_report.set));
        set_report
            .skipped
            .iter()
            .map(move |(path, why)| format!("{name} was not measured on the {}: {why}\n", path.name()))
    });
    tables.iter().map(Table::to_string).collect::<Vec<_>>().join("\n") + &skipped.collect::<String>()
}

fn times(all: &[SetReport], gpu: bool) -> Table {
    let heading = ["set", "dtype", "path", "layout", "operation", "time", "spread", "GB/s", "roofline"];
    let gpu_columns = gpu.then_some(["wall", "encode", "ready"]).into_iter().flatten();
    let mut table = Table::new(heading.into_iter().chain(gpu_columns)).numbers_from(5);
    for set_report in all {
        let set = &set_report.set;
        for row in &set_report.rows {
            let Timing { seconds, wall, encode, ready } = row.timing;
            let host =
                [Some(wall), encode, ready].map(|time| time.map_or("-".into(), |time| duration(time.median)));
            table.row(
                [
                    set_report.set.label(),
                    dtype(set),
                    row.path.name().into(),
                    row.layout.into(),
                    row.workload.name().into(),
                    duration(seconds.median),
                    format!("{:.0} %", 100.0 * seconds.relative_spread()),
                    significant(row.gb_per_s(set)),
                    format!("{:.0} %", row.percent_of_roofline()),
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
    // The plan of an exceeded clip has the stages of all other plans except the clamp's.
    let shown = [Workload::Op(Op::Exceeded), Workload::Op(Op::Clamp)];
    for set_report in all {
        for row in set_report.rows.iter().filter(|row| shown.contains(&row.workload)) {
            let Some(cost) = &row.cost else { continue };
            table.row([
                set_report.set.label(),
                dtype(&set_report.set),
                row.layout.into(),
                row.workload.name().into(),
                cost.dispatches.to_string(),
                duration(cost.prepare.median),
                format!("{} B", cost.scratch_bytes),
                format!("{:.3} %", 100.0 * cost.scratch_bytes as f64 / set_report.set.bytes() as f64),
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
    for set_report in all {
        for (path, layout) in set_report.paths_and_layouts() {
            let of = [set_report.set.label(), dtype(&set_report.set), path.name().into(), layout.into()];
            let ratios = set_report.ratios(path, layout).all();
            let ratios = ratios.map(|ratio| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")));
            table.row(of.into_iter().chain(ratios).take(4 + names.len()));
        }
    }
    table
}

/// Formats a time in µs, ms or s.
pub fn duration(seconds: f64) -> String {
    match seconds {
        ..1e-3 => format!("{} µs", significant(seconds * 1e6)),
        ..1.0 => format!("{} ms", significant(seconds * 1e3)),
        _ => format!("{} s", significant(seconds)),
    }
}

/// Formats a number with at least three significant digits.
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
    fn durations_have_three_digits_and_a_fitting_unit() {
        for (seconds, text) in
            [(1.234_5e-6, "1.23 µs"), (0.000_999, "999 µs"), (0.045_67, "45.7 ms"), (12.0, "12.0 s")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
