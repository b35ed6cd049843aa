//! What `gradclip clip` prints: aligned columns for people, JSON for programs.

use std::time::Duration;

use gradclip::{ClipRecord, TensorStats};
use serde_json::{Map, Value, json};

use crate::file::Tensor;
use crate::manner::Scope;
use crate::table::Table;

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
    /// If it was clipped by itself.
    pub(crate) record: Option<ClipRecord>,
    pub(crate) group: usize,
}

/// Tensors that share a limit.
pub(crate) struct Group {
    /// None for those that match no pattern.
    pub(crate) pattern: Option<String>,
    pub(crate) limit: f32,
    pub(crate) total_norm: f32,
    pub(crate) total_norm_after: f32,
    /// If they were clipped together.
    pub(crate) record: Option<ClipRecord>,
}

impl Report {
    pub(crate) fn table(&self) -> String {
        // Its empty heading parts it from what comes before.
        let mut outcome = Table::new(["", ""]);
        let groups = match &self.groups[..] {
            [group] => {
                outcome.row(["total norm".into(), number(group.total_norm)]);
                outcome.row(["after clipping".into(), number(group.total_norm_after)]);
                outcome.row(["coefficient".into(), self.coefficient(group)]);
                outcome.row(["limit".into(), number(group.limit)]);
                String::new()
            }
            _ => format!("\n{}", self.group_table()),
        };
        if !self.excluded.is_empty() {
            outcome.row(["excluded".into(), format!("{} tensors", self.excluded.len())]);
        }
        outcome.row(["device".into(), self.device.clone()]);
        outcome.row(["time".into(), self.times()]);
        format!("{}{groups}{outcome}", self.tensor_table())
    }

    fn tensor_table(&self) -> Table {
        let own = (self.scope == Scope::Tensor).then_some("coefficient");
        let counts = self.tensors.iter().any(|row| row.stats.non_finite > 0).then_some("non-finite");
        let several = (self.groups.len() > 1).then_some("group");
        let heading = ["tensor", "dtype", "shape", "norm"];
        let mut table = Table::new(heading.into_iter().chain(own).chain(counts).chain(several));
        for Row { tensor, stats, record, group } in &self.tensors {
            let dtype = format!("{:?}", tensor.dtype);
            let cells = [escaped(&tensor.name), dtype, format!("{:?}", tensor.shape), number(stats.norm)];
            let own = own.map(|_| record.as_ref().map_or_else(String::new, coefficient));
            let count =
                counts.map(|_| if stats.non_finite > 0 { stats.non_finite.to_string() } else { "-".into() });
            let group = several.map(|_| self.groups[*group].name());
            table.row(cells.into_iter().chain(own).chain(count).chain(group));
        }
        table
    }

    fn group_table(&self) -> Table {
        let mut table = Table::new(["group", "total norm", "after clipping", "coefficient", "limit"]);
        for group in &self.groups {
            let [before, after, limit] = [group.total_norm, group.total_norm_after, group.limit].map(number);
            table.row([group.name(), before, after, self.coefficient(group), limit]);
        }
        table
    }

    fn coefficient(&self, group: &Group) -> String {
        match (&group.record, self.scope) {
            (Some(record), _) => coefficient(record),
            (None, Scope::Tensor) => "one per tensor".into(),
            (None, _) => "none: by value".into(),
        }
    }

    fn times(&self) -> String {
        let times = self.seconds.iter().filter(|(_, time)| !time.is_zero());
        times.map(|(stage, time)| format!("{stage} {time:.1?}")).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn json(&self) -> String {
        let seconds =
            self.seconds.iter().map(|(stage, time)| ((*stage).to_owned(), json!(time.as_secs_f64())));
        let (others, groups) = self.groups.split_first().expect("there is a group for what matches none");
        let mut report = others.json();
        report.extend([
            ("device".into(), json!(self.device)),
            ("non_finite".into(), json!(self.non_finite())),
            ("seconds".into(), seconds.collect::<Map<_, _>>().into()),
            ("tensors".into(), self.tensors.iter().map(Row::json).collect()),
        ]);
        if !self.excluded.is_empty() {
            report.insert("excluded".into(), json!(self.excluded));
        }
        if !groups.is_empty() {
            report.insert("groups".into(), groups.iter().map(Group::json_with_limit).collect());
        }
        format!("{}\n", Value::from(report))
    }

    fn non_finite(&self) -> bool {
        self.tensors.iter().any(|row| row.stats.non_finite > 0)
            || self.groups.iter().any(|group| !group.total_norm.is_finite())
    }
}

impl Row {
    fn json(&self) -> Value {
        let Self { tensor, stats, record, .. } = self;
        let dtype = format!("{:?}", tensor.dtype);
        let mut row = json!({
            "name": tensor.name,
            "dtype": dtype,
            "shape": tensor.shape,
            "norm": json_number(stats.norm),
            "max_magnitude": json_number(stats.max_magnitude),
            "non_finite": stats.non_finite,
            "zeros": stats.zeros,
        });
        if let Some(record) = record {
            row["clip_coef"] = json_number(record.clip_coef);
        }
        row
    }
}

impl Group {
    fn name(&self) -> String {
        self.pattern.as_deref().map_or_else(|| "(others)".into(), escaped)
    }

    fn json(&self) -> Map<String, Value> {
        let coef = self.record.map(|record| json_number(record.clip_coef));
        Map::from_iter([
            ("total_norm".into(), json_number(self.total_norm)),
            ("total_norm_after".into(), json_number(self.total_norm_after)),
            ("clip_coef".into(), coef.into()),
        ])
    }

    fn json_with_limit(&self) -> Value {
        let mut group = self.json();
        group.insert("pattern".into(), json!(self.pattern));
        group.insert("limit".into(), json_number(self.limit));
        group.into()
    }
}

/// So that no name can break the lines or talk to the terminal.
fn escaped(name: &str) -> String {
    name.escape_debug().to_string()
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
fn number(x: f32) -> String {
    if x == 0.0 || !x.is_finite() || (1e-4..1e7).contains(&x.abs()) {
        format!("{x}")
    } else {
        format!("{x:e}")
    }
}

/// JSON knows no NaN and no infinity: they become strings.
fn json_number(x: f32) -> Value {
    match x {
        f32::INFINITY => "Infinity".into(),
        f32::NEG_INFINITY => "-Infinity".into(),
        x if x.is_nan() => "NaN".into(),
        // Exactly the f32, which a reader that rounds to f32 gets back.
        x => f64::from(x).into(),
    }
}
