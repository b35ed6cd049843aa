//! What `gradclip clip` prints: aligned columns for people, JSON for programs. Both are written row by row, so that a file
//! of very many tensors takes no more memory to report than to read.

use std::io::{self, Write};
use std::time::Duration;

use gradclip::ClipRecord;
use gradclip::stats::TensorStats;
use gradclip_measure::table::{Columns, Table};
use gradclip_measure::text::{self, WIDTH, shortened};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::file::Tensor;
use crate::manner::Scope;

/// The widest shape or pattern of a group in the table of tensors.
const NARROW: usize = 40;

/// The outcome of `gradclip clip`.
pub(crate) struct Report {
    pub(crate) scope: Scope,
    pub(crate) tensors: Vec<Row>,
    /// The tensors that match no pattern first.
    pub(crate) groups: Vec<Group>,
    /// The names of tensors that were left as they are.
    pub(crate) excluded: Vec<String>,
    pub(crate) device: String,
    pub(crate) seconds: Vec<(&'static str, Duration)>,
}

pub(crate) struct Row {
    pub(crate) tensor: Tensor,
    /// Before clipping.
    pub(crate) stats: TensorStats,
    /// If a plot wants it.
    pub(crate) norm_after: Option<f32>,
    /// If it was clipped by itself.
    pub(crate) record: Option<ClipRecord>,
    pub(crate) group: usize,
}

/// Tensors that share a limit.
pub(crate) struct Group {
    /// None for those that match no pattern.
    pub(crate) pattern: Option<String>,
    pub(crate) limit: f32,
    /// Before and after clipping. None if no tensor is in the group.
    pub(crate) norms: Option<[f32; 2]>,
    /// If they were clipped together.
    pub(crate) record: Option<ClipRecord>,
}

impl Report {
    /// For people.
    pub(crate) fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_tensors(out)?;
        // Its empty heading parts it from what comes before.
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
        let own = self.scope == Scope::Tensor;
        let counts = self.tensors.iter().any(|row| row.stats.non_finite > 0);
        let several = self.groups.len() > 1;
        let optional = [(own, "coefficient"), (counts, "non-finite"), (several, "group")];
        let optional = optional.into_iter().filter_map(|(shown, heading)| shown.then_some(heading));
        let heading = ["tensor", "dtype", "shape", "norm"].into_iter().chain(optional);
        let heading: Vec<String> = heading.map(str::to_owned).collect();
        let cells = |Row { tensor, stats, record, group, .. }: &Row| {
            let mut cells = vec![
                shortened(&tensor.name, WIDTH),
                format!("{:?}", tensor.dtype),
                shortened(&format!("{:?}", tensor.shape), NARROW),
                number(stats.norm),
            ];
            if own {
                cells.push(record.as_ref().map_or_else(String::new, coefficient));
            }
            if counts {
                cells.push(if stats.non_finite > 0 { stats.non_finite.to_string() } else { "-".into() });
            }
            if several {
                cells.push(self.groups[*group].name(NARROW));
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
        // The line of all others only if there are some.
        for group in self.groups.iter().filter(|group| group.pattern.is_some() || group.norms.is_some()) {
            let [before, after] = group.cells();
            table.row([group.name(WIDTH), before, after, self.coefficient(group), number(group.limit)]);
        }
        table
    }

    fn coefficient(&self, group: &Group) -> String {
        match (&group.record, self.scope) {
            _ if group.norms.is_none() => "-".into(),
            (Some(record), _) => coefficient(record),
            (None, Scope::Tensor) => "one per tensor".into(),
            (None, _) => "none: by value".into(),
        }
    }

    fn times(&self) -> String {
        let times = self.seconds.iter().filter(|(_, time)| !time.is_zero());
        times.map(|(stage, time)| format!("{stage} {time:.1?}")).collect::<Vec<_>>().join(", ")
    }

    /// For programs: one JSON object.
    pub(crate) fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        text::write_json(out, self)
    }

    fn non_finite(&self) -> bool {
        // Not whether a norm is infinite: one of finite elements may exceed f32.
        self.tensors.iter().any(|row| row.stats.non_finite > 0)
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (others, groups) = self.groups.split_first().expect("there is a group for what matches none");
        let mut report = serializer.serialize_map(None)?;
        others.serialize_outcome::<S>(&mut report)?;
        report.serialize_entry("device", &self.device)?;
        report.serialize_entry("non_finite", &self.non_finite())?;
        report.serialize_entry("seconds", &Seconds(&self.seconds))?;
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

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { tensor, stats, record, .. } = self;
        let mut row = serializer.serialize_map(None)?;
        row.serialize_entry("name", &tensor.name)?;
        row.serialize_entry("dtype", &format!("{:?}", tensor.dtype))?;
        row.serialize_entry("shape", &tensor.shape)?;
        row.serialize_entry("norm", &Number(stats.norm))?;
        row.serialize_entry("max_magnitude", &Number(stats.max_magnitude))?;
        row.serialize_entry("non_finite", &stats.non_finite)?;
        row.serialize_entry("zeros", &stats.zeros)?;
        if let Some(record) = record {
            row.serialize_entry("clip_coef", &Number(record.clip_coef))?;
        }
        row.end()
    }
}

impl Group {
    /// At most `width` columns wide.
    pub(crate) fn name(&self, width: usize) -> String {
        self.pattern.as_deref().map_or_else(|| "(others)".into(), |pattern| shortened(pattern, width))
    }

    fn cells(&self) -> [String; 2] {
        self.norms.map_or_else(|| ["-".into(), "-".into()], |norms| norms.map(number))
    }

    /// What a group has in common with all tensors that are in none. Without tensors it has no norm, so null.
    fn serialize_outcome<S: Serializer>(&self, map: &mut S::SerializeMap) -> Result<(), S::Error> {
        let [before, after] = self.norms.map_or([None; 2], |norms| norms.map(|norm| Some(Number(norm))));
        let coef = self.record.filter(|_| self.norms.is_some()).map(|record| Number(record.clip_coef));
        map.serialize_entry("total_norm", &before)?;
        map.serialize_entry("total_norm_after", &after)?;
        map.serialize_entry("clip_coef", &coef)
    }
}

impl Serialize for Group {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut group = serializer.serialize_map(None)?;
        group.serialize_entry("pattern", &self.pattern)?;
        group.serialize_entry("limit", &Number(self.limit))?;
        self.serialize_outcome::<S>(&mut group)?;
        group.end()
    }
}

struct Seconds<'a>(&'a [(&'static str, Duration)]);

impl Serialize for Seconds<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(stage, time)| (stage, time.as_secs_f64())))
    }
}

/// JSON knows no NaN and no infinity: they become strings.
#[derive(Clone, Copy)]
struct Number(f32);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            f32::INFINITY => serializer.serialize_str("Infinity"),
            f32::NEG_INFINITY => serializer.serialize_str("-Infinity"),
            x if x.is_nan() => serializer.serialize_str("NaN"),
            // Exactly the f32, which a reader that rounds to f32 gets back.
            x => serializer.serialize_f64(x.into()),
        }
    }
}

/// The coefficient, and what became of it where gradients are not finite.
fn coefficient(record: &ClipRecord) -> String {
    let coef = number(record.clip_coef);
    match record {
        _ if record.skip() => format!("{coef}, but skipped: not finite"),
        _ if record.zeroed() => format!("{coef}, but zeroed: not finite"),
        _ => coef,
    }
}

/// All digits that tell one f32 from the next, with an exponent where zeros would fill the line.
pub(crate) fn number(x: f32) -> String {
    if x == 0.0 || !x.is_finite() || (1e-4..1e7).contains(&x.abs()) {
        format!("{x}")
    } else {
        format!("{x:e}")
    }
}
