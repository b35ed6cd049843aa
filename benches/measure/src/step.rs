//! A training step on the GPU: a stand-in for the backward pass, the clip in each way, and SGD.

pub mod bench;

use std::fmt::Write as _;
use std::iter;

use gradclip::DType;
use serde_json::{Value, json};

use crate::report::duration;
use crate::sets::GradientSet;
use crate::table::Table;
use crate::timing::Timing;

/// A way to clip in a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Does not clip.
    WithoutClip,
    /// Measures the gradients and scales them.
    PlainClip,
    /// Measures the gradients. SGD applies the factor.
    Coefficient,
    /// Measures each tensor after the kernel that produces it. SGD applies the factor.
    Parts,
    /// Reads the partials that the producing kernel leaves. SGD applies the factor.
    Partials,
}

impl Way {
    /// All ways.
    pub const ALL: [Self; 5] =
        [Self::WithoutClip, Self::PlainClip, Self::Coefficient, Self::Parts, Self::Partials];

    /// Returns the name that the report uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WithoutClip => "without clip",
            Self::PlainClip => "plain clip",
            Self::Coefficient => "coefficient",
            Self::Parts => "parts",
            Self::Partials => "partials",
        }
    }

    /// Returns the minimum number of bytes that the clip moves for `gradients` bytes of gradients and `partials` bytes of
    /// partials.
    const fn bytes(self, gradients: usize, partials: usize) -> usize {
        match self {
            Self::WithoutClip => 0,
            Self::PlainClip => 3 * gradients,
            Self::Coefficient | Self::Parts => gradients,
            Self::Partials => partials,
        }
    }
}

/// The measurement of one way on one set.
#[derive(Debug)]
pub struct StepRow {
    /// The way to clip.
    pub way: Way,
    /// The measured times of the whole step.
    pub timing: Timing,
    /// The dispatches of the clip.
    pub dispatches: usize,
    /// The minimum number of bytes that the clip moves.
    pub bytes: usize,
}

/// The results of one set.
#[derive(Debug)]
pub struct StepReport {
    /// The set.
    pub set: GradientSet,
    /// The measured rows. Empty if the set was skipped.
    pub rows: Vec<StepRow>,
    /// The clock that timed the rows: `gpu` or `wall`.
    pub clock: &'static str,
    /// Whether the adapter is a software adapter, on which only counts are results.
    pub software: bool,
    /// The reason why the set was not measured.
    pub skipped: Option<String>,
}

/// Returns the sets of the step benchmark that fit into `max_bytes`. Their tensors have equal lengths.
pub fn sets(max_bytes: usize) -> Vec<GradientSet> {
    let single = |log2: u32| GradientSet::new(&format!("2^{log2}"), DType::F32, vec![1 << log2]);
    let several = GradientSet::new("32x2^19", DType::F32, vec![1 << 19; 32]);
    let sets = [14, 20, 24, 26].map(single).into_iter().chain(iter::once(several));
    sets.filter_map(|set| set.cut(max_bytes)).collect()
}

/// Returns the ID that `--only` matches: `gpu/step/set/way`.
pub fn id(set: &GradientSet, way: Way) -> String {
    format!("gpu/step/{}/{}", set.name, way.name())
}

impl StepReport {
    /// Returns the clip's share of a row's time. `None` on a software adapter, or if the step without a clip was not measured.
    fn share(&self, row: &StepRow) -> Option<f64> {
        let without = self.rows.iter().find(|row| row.way == Way::WithoutClip)?;
        let [seconds, without] = [row, without].map(|row| row.timing.seconds.median);
        (!self.software).then_some((seconds - without) / seconds)
    }

    fn json(&self, row: &StepRow) -> Value {
        let Self { set, clock, .. } = self;
        let Timing { seconds, wall, encode, ready } = row.timing;
        json!({
            "kind": "step",
            "library": "gradclip",
            "path": "gpu",
            "set": set.name,
            "dtype": "f32",
            "step": row.way.name(),
            "tensors": set.lens.len(),
            "tensors_of_model": set.model_tensors,
            "elements": set.elements(),
            "clock": clock,
            "seconds": seconds.median,
            "seconds_low": seconds.low,
            "seconds_high": seconds.high,
            "repetitions": seconds.count,
            "wall_seconds": wall.median,
            "encode_seconds": encode.map(|encode| encode.median),
            "ready_seconds": ready.map(|ready| ready.median),
            "clip_share": self.share(row),
            "clip_dispatches": row.dispatches,
            "clip_bytes": row.bytes,
        })
    }
}

/// Returns the rows and skipped sets as JSON objects.
pub fn json(all: &[StepReport]) -> Vec<Value> {
    let mut lines = Vec::new();
    for report in all {
        lines.extend(report.rows.iter().map(|row| report.json(row)));
        lines.extend(report.skipped.iter().map(
            |why| json!({ "kind": "skipped", "path": "gpu", "set": report.set.name, "dtype": "f32", "step": true, "why": why }),
        ));
    }
    lines
}

/// Formats the rows as a text table with a legend.
pub fn table(all: &[StepReport]) -> String {
    let heading = [
        "training step",
        "gradients",
        "time",
        "spread",
        "clip's share",
        "clip's dispatches",
        "clip's bytes",
        "wall",
        "encode",
        "ready",
    ];
    let mut table = Table::new(heading).numbers_from(2);
    for report in all {
        for row in &report.rows {
            let Timing { seconds, wall, encode, ready } = row.timing;
            let host =
                [Some(wall), encode, ready].map(|time| time.map_or("-".into(), |time| duration(time.median)));
            let cells = [
                format!("step, {}", row.way.name()),
                report.set.label(),
                duration(seconds.median),
                format!("{:.0} %", 100.0 * seconds.relative_spread()),
                report.share(row).map_or("-".into(), |share| format!("{:.1} %", 100.0 * share)),
                row.dispatches.to_string(),
                row.bytes.to_string(),
            ];
            table.row(cells.into_iter().chain(host));
        }
    }
    let mut text = table.to_string();
    for report in all {
        if let Some(why) = &report.skipped {
            let _ = writeln!(text, "the step of {} was not measured: {why}", report.set.name);
        }
    }
    text += "
clip's share       the time beyond that of the step without a clip, in percent of the step's time
clip's dispatches  the dispatches of the plan
clip's bytes       bytes that the clip must move at least; of partials, their size
";
    if all.iter().any(|report| report.software) {
        text += "On a software adapter only the clip's dispatches and bytes are results.\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::{Sample, time_interleaved};

    #[test]
    fn sets_are_cut_to_fit() {
        let names = |max_bytes| sets(max_bytes).iter().map(GradientSet::label).collect::<Vec<_>>();
        assert_eq!(names(1 << 16), ["2^14"]);
        assert_eq!(names(4 << 20), ["2^14", "2^20", "32x2^19, 2 of 32 tensors"]);
        assert_eq!(names(1 << 30), ["2^14", "2^20", "2^24", "2^26", "32x2^19"]);
    }

    fn report(software: bool) -> StepReport {
        let timings = time_interleaved(2, std::time::Duration::ZERO, |index| {
            let seconds = [3.0, 4.0][index];
            Ok(Sample { seconds, wall: seconds, encode: None, ready: None })
        });
        let ways = [Way::WithoutClip, Way::Parts].into_iter().zip(timings.unwrap());
        let row =
            |(way, timing): (Way, Timing)| StepRow { way, timing, dispatches: 1, bytes: way.bytes(8, 2) };
        let [set, ..] = &sets(1 << 16)[..] else { panic!("one set") };
        let rows = ways.map(row).collect();
        StepReport { set: set.clone(), rows, clock: "gpu", software, skipped: None }
    }

    #[test]
    fn the_share_is_what_the_clip_adds_and_is_no_result_of_a_software_adapter() {
        let shares =
            |software| json(&[report(software)]).iter().map(|line| line["clip_share"].clone()).collect();
        let (on_gpu, in_software): (Vec<_>, Vec<_>) = (shares(false), shares(true));
        assert_eq!(on_gpu, [json!(0.0), json!(0.25)]);
        assert_eq!(in_software, [Value::Null, Value::Null]);
        let counts = "On a software adapter only the clip's dispatches and bytes are results.";
        assert!(table(&[report(true)]).contains(counts) && !table(&[report(false)]).contains(counts));
        assert!(table(&[report(false)]).contains("25.0 %"));
    }

    #[test]
    fn each_way_has_its_bytes() {
        assert_eq!(Way::ALL.map(|way| way.bytes(4096, 8)), [0, 12288, 4096, 4096, 8]);
    }
}
