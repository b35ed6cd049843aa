//! The performance targets for a GPU, and their evaluation on saved lines.

use gradclip_measure::ops::Op;
use gradclip_measure::roofline::Roofline;
use gradclip_measure::timing::Workload;

use super::rated_bandwidth;
use super::saved_lines::{Row, Run, SavedLines, medians};
use super::tables::markdown;

/// The minimum size of a large set, to which most targets apply.
const LARGE_SET_BYTES: u64 = 64 << 20;
/// The range of tensor counts of models, from GPT-2 to Llama-7B.
const MODEL_TENSORS: std::ops::RangeInclusive<usize> = 148..=291;
/// The tensor count of Llama-7B.
const LLAMA_7B_TENSORS: usize = 291;
/// The set of the small clip: 1 MiB of f32.
const SMALL_SET: &str = "2^18";
/// The percent of the rated bandwidth that the read roofline must reach for [`OfRated`] to apply.
const MIN_ROOFLINE_PERCENT: f64 = 90.0;

const READ: &str = Workload::Roofline(Roofline::Read).name();
const IN_PLACE: &str = Workload::Roofline(Roofline::InPlace).name();
const NORM: &str = Op::Norm.name();

/// A target: a row of the report's first table.
struct Target {
    label: &'static str,
    quantity: Quantity,
    bound: Bound,
    unit: Unit,
    source: Source,
    /// The condition on the lines of the source, which the report names if no line satisfies it.
    requirement: &'static str,
}

/// A measured quantity, with one value per set, layout or operation.
#[derive(Clone, Copy)]
enum Quantity {
    /// Percent of the roofline of the same run, in an arena.
    OfRoofline(Op),
    /// The norm's percent of the card's rated bandwidth, where the read roofline reaches [`MIN_ROOFLINE_PERCENT`].
    OfRated,
    /// Time over the norm's, in an arena.
    OverNorm(Op),
    /// Time over the sum of the norm's and the in-place roofline's, in an arena.
    OverNormAndInPlace(Op),
    /// PyTorch's time with foreach over gradclip's, in both layouts.
    PyTorch(Op),
    /// Time with separate buffers over time with an arena, for every operation.
    SeparateOverArena,
    /// GPU time of a clip of [`SMALL_SET`], exceeded or not.
    SmallClip,
    /// Host time to record a step for [`MODEL_TENSORS`] separate buffers.
    EncodeSeparate,
    /// Host time to record a step for an arena.
    EncodeArena,
    /// Host time to prepare a plan again for [`LLAMA_7B_TENSORS`] buffers.
    PrepareAgain,
    /// A plan's scratch memory in percent of its limit: 0.1 % of the size in f32 plus 64 KiB.
    Scratch,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Clone, Copy)]
enum Unit {
    Percent,
    Ratio,
    Microseconds,
}

/// The source of a target's lines.
#[derive(Clone, Copy)]
enum Source {
    Gpu,
    PyTorch,
    Host,
}

use Bound::{AtLeast, AtMost};
use Quantity::{
    EncodeArena, EncodeSeparate, OfRated, OfRoofline, OverNorm, OverNormAndInPlace, PrepareAgain, PyTorch,
    Scratch, SeparateOverArena, SmallClip,
};
use Unit::{Microseconds, Percent, Ratio};

impl Target {
    const fn new(label: &'static str, quantity: Quantity, bound: Bound, unit: Unit) -> Self {
        let (source, requirement) = match quantity {
            PyTorch(_) => (Source::PyTorch, "measures a set of 64 MiB or more"),
            SmallClip => (Source::Gpu, "measures a clip of 2^18 f32"),
            SeparateOverArena => (Source::Gpu, "measures a set of 148 to 291 tensors and 64 MiB or more"),
            EncodeSeparate => (Source::Host, "measures 148 to 291 separate buffers"),
            EncodeArena => (Source::Host, "measures an arena"),
            PrepareAgain => (Source::Host, "measures 291 separate buffers"),
            Scratch => (Source::Gpu, "measures a plan"),
            OfRated | OfRoofline(_) | OverNorm(_) | OverNormAndInPlace(_) => {
                (Source::Gpu, "measures a set of 64 MiB or more")
            }
        };
        Self { label, quantity, bound, unit, source, requirement }
    }
}

/// All targets with their bounds.
const TARGETS: [Target; 17] = [
    Target::new("norm, of the read roofline", OfRoofline(Op::Norm), AtLeast(95.0), Percent),
    Target::new("norm, of the card's rated bandwidth", OfRated, AtLeast(90.0), Percent),
    Target::new("clamp, of the in-place roofline", OfRoofline(Op::Clamp), AtLeast(95.0), Percent),
    Target::new("not exceeded / norm", OverNorm(Op::NotExceeded), AtMost(1.05), Ratio),
    Target::new("exceeded / (norm + in place)", OverNormAndInPlace(Op::Exceeded), AtMost(1.05), Ratio),
    Target::new("coefficient only / norm", OverNorm(Op::CoefficientOnly), AtMost(1.02), Ratio),
    Target::new("PyTorch foreach / gradclip, norm", PyTorch(Op::Norm), AtLeast(1.0), Ratio),
    Target::new("PyTorch foreach / gradclip, not exceeded", PyTorch(Op::NotExceeded), AtLeast(2.5), Ratio),
    Target::new("PyTorch foreach / gradclip, exceeded", PyTorch(Op::Exceeded), AtLeast(1.0), Ratio),
    Target::new("PyTorch foreach / gradclip, clamp", PyTorch(Op::Clamp), AtLeast(1.8), Ratio),
    Target::new("PyTorch foreach / gradclip, unscale and clip", PyTorch(Op::LossScale), AtLeast(1.6), Ratio),
    Target::new("148 to 291 separate buffers / one arena", SeparateOverArena, AtMost(1.10), Ratio),
    Target::new("clip of 1 MiB, GPU time", SmallClip, AtMost(25.0), Microseconds),
    Target::new("encode, 148 to 291 buffers", EncodeSeparate, AtMost(100.0), Microseconds),
    Target::new("encode, one arena", EncodeArena, AtMost(10.0), Microseconds),
    Target::new("prepare again, 291 buffers", PrepareAgain, AtMost(300.0), Microseconds),
    Target::new("scratch, of 0.1 % of as many f32 and 64 KiB", Scratch, AtMost(100.0), Percent),
];

/// Formats the targets as a Markdown table. `rated` overrides the card's rated bandwidth.
pub(crate) fn table(lines: &SavedLines, rated: Option<f64>) -> String {
    let rows = TARGETS.iter().map(|target| target.row(lines, rated)).collect();
    let about = "Each row shows its worst and its best value, of sets of 64 MiB or more unless the row names other sets.\n\n";
    format!("## Targets\n\n{about}{}", markdown(&["what", "target", "measured", "result"], rows))
}

impl Target {
    fn row(&self, lines: &SavedLines, rated: Option<f64>) -> Vec<String> {
        let mut values = medians(self.quantity.values(lines, rated));
        values.sort_by(|(_, a), (_, b)| match self.bound {
            AtLeast(_) => a.total_cmp(b),
            AtMost(_) => b.total_cmp(a),
        });
        let (measured, result) = match &values[..] {
            [] => self.without_values(lines, rated),
            [only] => (self.with_name(only), self.verdict(&values)),
            [worst, .., best] => {
                (format!("{} to {}", self.with_name(worst), self.with_name(best)), self.verdict(&values))
            }
        };
        let target = match self.bound {
            AtLeast(bound) => format!("at least {}", self.unit.text(bound)),
            AtMost(bound) => format!("at most {}", self.unit.text(bound)),
        };
        vec![self.label.into(), target, measured, result]
    }

    fn with_name(&self, (name, value): &(String, f64)) -> String {
        format!("{} ({name})", self.unit.text(*value))
    }

    /// Returns the result for values in order from worst to best.
    fn verdict(&self, values: &[(String, f64)]) -> String {
        let shortfall = |value: f64| match self.bound {
            AtLeast(bound) => bound - value,
            AtMost(bound) => value - bound,
        };
        let missed = values.iter().filter(|(_, value)| shortfall(*value) > 0.0).count();
        let (Some((_, worst)), 1..) = (values.first(), missed) else { return "met".into() };
        let by = match (self.unit, self.bound) {
            (Percent, _) => format!("{:.1} points", shortfall(*worst)),
            (Ratio, AtLeast(bound) | AtMost(bound)) => format!("{:.1} %", 100.0 * shortfall(*worst) / bound),
            (Microseconds, _) => format!("{:.1} µs", shortfall(*worst)),
        };
        format!("**missed** by {by}, in {missed} of {}", values.len())
    }

    /// Returns the cells for a target without values: the reason and the result.
    fn without_values(&self, lines: &SavedLines, rated: Option<f64>) -> (String, String) {
        let (lines_of, any) = match self.source {
            Source::Gpu => ("`gradclip bench` on a GPU", has(lines, Row::is_gradclip)),
            Source::PyTorch => ("`compare.py --device cuda`", has(lines, Row::is_pytorch)),
            Source::Host => (
                "`gradclip bench` on a GPU or of the host bench",
                !lines.hosts.is_empty() || has(lines, Row::is_gradclip),
            ),
        };
        let below = || matches!(self.quantity, OfRated).then(|| below_rated(lines, rated)).flatten();
        let measured = if any {
            if let Some(below) = below() {
                return below;
            }
            format!("not measured: no line of {lines_of} {}", self.requirement)
        } else {
            format!("not measured: no lines of {lines_of}")
        };
        (measured, "-".into())
    }
}

fn has(lines: &SavedLines, is: fn(&Row) -> bool) -> bool {
    lines.rows().any(|(_, row)| is(row) && row.path == "gpu" && !row.is_roofline())
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Percent => format!("{value:.1} %"),
            Ratio => format!("{value:.3}"),
            Microseconds => format!("{value:.1} µs"),
        }
    }
}

impl Quantity {
    fn values(self, lines: &SavedLines, rated: Option<f64>) -> Vec<(String, f64)> {
        let rows = lines.rows().filter(|(_, row)| row.path == "gpu" && !row.is_roofline());
        match self {
            PyTorch(op) => {
                let foreach = |row: &Row| row.is_pytorch() && row.foreach == Some(true);
                rows.filter(|(_, row)| foreach(row) && row.operation == op.name() && is_large(row))
                    .flat_map(|(run, row)| lines.over_gradclip(run, row))
                    .map(|(row, ratio)| (format!("{}, {}", row.name(), row.layout), ratio))
                    .collect()
            }
            EncodeSeparate | EncodeArena | PrepareAgain => self.host_values(lines),
            _ => rows
                .filter(|(_, row)| row.is_gradclip())
                .filter_map(|(run, row)| self.row_value(run, row, rated))
                .collect(),
        }
    }

    /// Returns the name and value of the quantity for a GPU row of gradclip.
    fn row_value(self, run: &Run, row: &Row, rated: Option<f64>) -> Option<(String, f64)> {
        let is = |op: Op| row.operation == op.name() && row.layout == "arena" && is_large(row);
        let (name, microseconds) = (row.name(), row.seconds * 1e6);
        let named = format!("{name}, {}", row.operation);
        Some(match self {
            OfRoofline(op) if is(op) => (name, row.percent_of_roofline?),
            OfRated if is(Op::Norm) => {
                let rated = rated.or_else(|| rated_of(run))?;
                let reached = 100.0 * run.find_same_set(row, "arena", READ)?.gb_per_s / rated;
                (reached >= MIN_ROOFLINE_PERCENT).then_some((name, 100.0 * row.gb_per_s / rated))?
            }
            OverNorm(op) if is(op) => (name, run.over(row, NORM)?),
            OverNormAndInPlace(op) if is(op) => (name, run.over_both(row, NORM, IN_PLACE)?),
            SeparateOverArena
                if row.layout == "separate" && is_large(row) && MODEL_TENSORS.contains(&row.tensors) =>
            {
                (named, row.seconds / run.find_same_set(row, "arena", &row.operation)?.seconds)
            }
            SmallClip if is_small_clip(row) => (named, microseconds),
            Scratch => {
                let bound = 0.004 * row.elements as f64 + 65536.0;
                (format!("{named}, {}", row.layout), 100.0 * row.scratch_bytes? / bound)
            }
            _ => return None,
        })
    }

    /// Returns the names and values of a host quantity, from GPU rows and from the host bench.
    fn host_values(self, lines: &SavedLines) -> Vec<(String, f64)> {
        let row_value = |(_, row): (_, &Row)| {
            let separate = row.layout == "separate";
            let seconds = match self {
                EncodeSeparate if separate && MODEL_TENSORS.contains(&row.tensors) => row.encode_seconds?,
                EncodeArena if row.layout == "arena" => row.encode_seconds?,
                PrepareAgain if separate && row.tensors == LLAMA_7B_TENSORS => row.prepare_seconds?,
                _ => return None,
            };
            Some((format!("{}, {}", row.name(), row.operation), 1e6 * seconds))
        };
        let rows = lines
            .rows()
            .filter(|(_, row)| row.path == "gpu" && row.is_gradclip() && !row.is_roofline())
            .filter_map(row_value);
        let hosts = lines.hosts.iter().filter_map(|host| {
            let seconds = match self {
                EncodeSeparate if MODEL_TENSORS.contains(&host.buffers) => host.encode_seconds,
                EncodeArena if host.buffers == 1 => host.encode_seconds,
                PrepareAgain if host.buffers == LLAMA_7B_TENSORS => host.prepare_seconds,
                _ => return None,
            };
            Some((format!("host bench, {} buffers", host.buffers), 1e6 * seconds))
        });
        rows.chain(hosts).collect()
    }
}

fn is_large(row: &Row) -> bool {
    row.bytes() >= LARGE_SET_BYTES
}

fn is_small_clip(row: &Row) -> bool {
    let clips = [Op::Exceeded, Op::NotExceeded].map(Op::name);
    row.set == SMALL_SET && row.dtype == "f32" && row.clock == "gpu" && clips.contains(&&*row.operation)
}

fn rated_of(run: &Run) -> Option<f64> {
    rated_bandwidth::of(run.gradclip.as_ref()?.gpu.as_ref()?)
}

/// Returns the cells for [`OfRated`] if no read roofline qualifies, or `None` if no large set was measured.
fn below_rated(lines: &SavedLines, rated: Option<f64>) -> Option<(String, String)> {
    let large = |(_, row): &(&Run, &Row)| row.path == "gpu" && row.operation == READ && is_large(row);
    let reads: Vec<_> = lines.rows().filter(large).collect();
    let percent = |&(run, row): &(&Run, &Row)| Some(100.0 * row.gb_per_s / rated.or_else(|| rated_of(run))?);
    if reads.is_empty() {
        return None;
    }
    let unknown = "not measured: the card's rated bandwidth is unknown (`--rated`)";
    let Some(best) = reads.iter().filter_map(percent).max_by(f64::total_cmp) else {
        return Some((unknown.into(), "-".into()));
    };
    let text = format!(
        "the read roofline reaches {best:.1} % of the rated bandwidth, but must reach {MIN_ROOFLINE_PERCENT} %"
    );
    Some((text, "does not apply".into()))
}

#[cfg(test)]
mod tests;
