//! The report of `gradclip clip`, as text tables and as JSON. Both are written row by row, so that reporting a file
//! with very many tensors takes no more memory than reading it.

use std::io::{self, Write};
use std::time::Duration;

use gradclip::ClipRecord;
use gradclip::stats::TensorStats;
use gradclip_measure::table::{Columns, Table};
use gradclip_measure::text::{self, WIDTH, shortened};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::clip_options::Scope;
use crate::file::Tensor;

/// The maximum width of a shape or group pattern in the table of tensors.
const NARROW_WIDTH: usize = 40;

/// The result of `gradclip clip`.
pub(crate) struct Report {
    pub(crate) scope: Scope,
    pub(crate) tensors: Vec<TensorRow>,
    /// The groups. The first one holds the tensors that match no pattern.
    pub(crate) groups: Vec<GroupRow>,
    /// The names of the excluded tensors.
    pub(crate) excluded: Vec<String>,
    pub(crate) device: String,
    pub(crate) seconds: Vec<(&'static str, Duration)>,
}

/// The result for one tensor.
pub(crate) struct TensorRow {
    pub(crate) tensor: Tensor,
    /// The statistics before clipping.
    pub(crate) stats: TensorStats,
    /// The norm after clipping. `None` unless a plot needs it.
    pub(crate) norm_after: Option<f32>,
    /// The record of the tensor's own clip. `None` unless each tensor is clipped separately.
    pub(crate) record: Option<ClipRecord>,
    pub(crate) group: usize,
}

/// The result for a group of tensors that share a limit.
pub(crate) struct GroupRow {
    /// `None` for the tensors that match no pattern.
    pub(crate) pattern: Option<String>,
    pub(crate) limit: f32,
    /// The norms before and after clipping. `None` if the group has no tensors.
    pub(crate) norms: Option<[f32; 2]>,
    /// The record of the group's clip. `None` unless the group is clipped by its joint norm.
    pub(crate) record: Option<ClipRecord>,
}

impl Report {
    /// Writes text tables.
    pub(crate) fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_tensors(out)?;
        // The empty heading separates this table from the one above.
        let mut outcome = Table::new(["", ""]);
        if let [group] = &self.groups[..] {
            let [before, after] = group.cells();
            outcome.row(["total norm".into(), before]);
            outcome.row(["after clipping".into(), after]);
            outcome.row(["coefficient".into(), self.coefficient(group)]);
            outcome.row(["limit".into(), number(group.limit)]);
        } else {
            write!(out, "\n{}", self.group_table())?;
        }
        if !self.excluded.is_empty() {
            let count = self.excluded.len();
            outcome.row(["excluded".into(), format!("{count} tensor{}", if count == 1 { "" } else { "s" })]);
        }
        outcome.row(["device".into(), self.device.clone()]);
        outcome.row(["time".into(), self.times()]);
        write!(out, "{outcome}")
    }

    fn write_tensors(&self, out: &mut dyn Write) -> io::Result<()> {
        let per_tensor = self.scope == Scope::Tensor;
        let has_non_finite = self.tensors.iter().any(|row| row.stats.non_finite > 0);
        let has_groups = self.groups.len() > 1;
        let optional = [(per_tensor, "coefficient"), (has_non_finite, "non-finite"), (has_groups, "group")];
        let optional = optional.into_iter().filter_map(|(shown, heading)| shown.then_some(heading));
        let heading = ["tensor", "dtype", "shape", "norm"].into_iter().chain(optional);
        let heading: Vec<String> = heading.map(str::to_owned).collect();
        let cells = |TensorRow { tensor, stats, record, group, .. }: &TensorRow| {
            let mut cells = vec![
                shortened(&tensor.name, WIDTH),
                format!("{:?}", tensor.dtype),
                shortened(&format!("{:?}", tensor.shape), NARROW_WIDTH),
                number(stats.norm),
            ];
            if per_tensor {
                cells.push(record.as_ref().map_or_else(String::new, coefficient));
            }
            if has_non_finite {
                cells.push(if stats.non_finite > 0 { stats.non_finite.to_string() } else { "-".into() });
            }
            if has_groups {
                cells.push(self.groups[*group].name(NARROW_WIDTH));
            }
            cells
        };
        let mut columns = Columns::new(heading.len());
        columns.fit(&heading);
        self.tensors.iter().for_each(|row| columns.fit(&cells(row)));
        writeln!(out, "{}", columns.line(&heading))?;
        self.tensors.iter().try_for_each(|row| writeln!(out, "{}", columns.line(&cells(row))))
    }

    fn group_table(&self) -> Table {
        let mut table = Table::new(["group", "total norm", "after clipping", "coefficient", "limit"]);
        // The row of the remaining tensors is omitted if there are none.
        for group in self.groups.iter().filter(|group| group.pattern.is_some() || group.norms.is_some()) {
            let [before, after] = group.cells();
            table.row([group.name(WIDTH), before, after, self.coefficient(group), number(group.limit)]);
        }
        table
    }

    fn coefficient(&self, group: &GroupRow) -> String {
        match (&group.record, self.scope) {
            _ if group.norms.is_none() => "-".into(),
            (Some(record), _) => coefficient(record),
            (None, Scope::Tensor) => "one per tensor".into(),
            (None, _) => "none (clip by value)".into(),
        }
    }

    fn times(&self) -> String {
        let times = self.seconds.iter().filter(|(_, time)| !time.is_zero());
        times.map(|(stage, time)| format!("{stage} {time:.1?}")).collect::<Vec<_>>().join(", ")
    }

    /// Writes one JSON object on one line.
    pub(crate) fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        text::write_json(out, self)
    }

    /// Whether any element is infinite or NaN.
    fn non_finite(&self) -> bool {
        // Infinite norms do not count: the norm of finite elements may exceed f32.
        self.tensors.iter().any(|row| row.stats.non_finite > 0)
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (others, groups) = self.groups.split_first().expect("the first group always exists");
        let mut report = serializer.serialize_map(None)?;
        others.serialize_outcome::<S>(&mut report)?;
        report.serialize_entry("device", &self.device)?;
        report.serialize_entry("non_finite", &self.non_finite())?;
        report.serialize_entry("seconds", &StageSeconds(&self.seconds))?;
        report.serialize_entry("tensors", &self.tensors)?;
        if !self.excluded.is_empty() {
            report.serialize_entry("excluded", &self.excluded)?;
        }
        if !groups.is_empty() {
            report.serialize_entry("groups", groups)?;
        }
        report.end()
    }
}

impl Serialize for TensorRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { tensor, stats, record, .. } = self;
        let mut row = serializer.serialize_map(None)?;
        row.serialize_entry("name", &tensor.name)?;
        row.serialize_entry("dtype", &format!("{:?}", tensor.dtype))?;
        row.serialize_entry("shape", &tensor.shape)?;
        row.serialize_entry("norm", &JsonFloat(stats.norm))?;
        row.serialize_entry("max_magnitude", &JsonFloat(stats.max_magnitude))?;
        row.serialize_entry("non_finite", &stats.non_finite)?;
        row.serialize_entry("zeros", &stats.zeros)?;
        if let Some(record) = record {
            row.serialize_entry("clip_coef", &JsonFloat(record.clip_coef))?;
        }
        row.end()
    }
}

impl GroupRow {
    /// Returns the pattern, or `(others)`, in at most `width` columns.
    pub(crate) fn name(&self, width: usize) -> String {
        self.pattern.as_deref().map_or_else(|| "(others)".into(), |pattern| shortened(pattern, width))
    }

    fn cells(&self) -> [String; 2] {
        self.norms.map_or_else(|| ["-".into(), "-".into()], |norms| norms.map(number))
    }

    /// Serializes the norms and the coefficient, which are null for a group without tensors.
    fn serialize_outcome<S: Serializer>(&self, map: &mut S::SerializeMap) -> Result<(), S::Error> {
        let [before, after] = self.norms.map_or([None; 2], |norms| norms.map(|norm| Some(JsonFloat(norm))));
        let coef = self.record.filter(|_| self.norms.is_some()).map(|record| JsonFloat(record.clip_coef));
        map.serialize_entry("total_norm", &before)?;
        map.serialize_entry("total_norm_after", &after)?;
        map.serialize_entry("clip_coef", &coef)
    }
}

impl Serialize for GroupRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut group = serializer.serialize_map(None)?;
        group.serialize_entry("pattern", &self.pattern)?;
        group.serialize_entry("limit", &JsonFloat(self.limit))?;
        self.serialize_outcome::<S>(&mut group)?;
        group.end()
    }
}

struct StageSeconds<'a>(&'a [(&'static str, Duration)]);

impl Serialize for StageSeconds<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(stage, time)| (stage, time.as_secs_f64())))
    }
}

/// A float in JSON. NaN and infinities, which JSON lacks, become strings.
#[derive(Clone, Copy)]
struct JsonFloat(f32);

impl Serialize for JsonFloat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            f32::INFINITY => serializer.serialize_str("Infinity"),
            f32::NEG_INFINITY => serializer.serialize_str("-Infinity"),
            x if x.is_nan() => serializer.serialize_str("NaN"),
            // The exact f32: a reader that rounds to f32 gets it back.
            x => serializer.serialize_f64(x.into()),
        }
    }
}

/// Formats the coefficient, with a note if non-finite gradients were skipped or zeroed.
fn coefficient(record: &ClipRecord) -> String {
    let coef = number(record.clip_coef);
    match record {
        _ if record.skip() => format!("{coef} (skipped: non-finite)"),
        _ if record.zeroed() => format!("{coef} (zeroed: non-finite)"),
        _ => coef,
    }
}

/// Formats an f32 with its shortest exact digits, and with an exponent if it is very small or large.
pub(crate) fn number(x: f32) -> String {
    if x == 0.0 || !x.is_finite() || (1e-4..1e7).contains(&x.abs()) {
        format!("{x}")
    } else {
        format!("{x:e}")
    }
}
