//! Parses saved JSON lines of `gradclip bench`, `compare.py`, `bench.py` and the host bench.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use gradclip_measure::statistics::Quartiles;
use serde::Deserialize;

/// The `library` of lines of `gradclip bench`.
const GRADCLIP: &str = "gradclip";
/// The `library` of lines of `bench.py`.
const PYTORCH: &str = "pytorch";

/// A JSON line. Kinds that the report does not use, such as ratios, parse as `Other`.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum JsonLine {
    Machine(Machine),
    Operation(Row),
    Roofline(Row),
    Step(Step),
    Host(Host),
    #[serde(other)]
    Other,
}

/// A machine line: the library, its version and the machine.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub(crate) struct Machine {
    pub(crate) library: String,
    pub(crate) version: String,
    pub(crate) optimized: Option<bool>,
    pub(crate) command: Vec<String>,
    /// The start of the run.
    pub(crate) unix_time: Option<u64>,
    pub(crate) cpu: Option<String>,
    pub(crate) threads: Option<usize>,
    pub(crate) gpu: Option<String>,
    pub(crate) gpu_is_software: Option<bool>,
}

/// The measurement of one operation or roofline on one set.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Row {
    pub(crate) library: String,
    pub(crate) path: String,
    pub(crate) set: String,
    pub(crate) dtype: String,
    pub(crate) layout: String,
    pub(crate) operation: String,
    /// Only in PyTorch's lines.
    pub(crate) foreach: Option<bool>,
    pub(crate) tensors: usize,
    pub(crate) tensors_of_model: usize,
    pub(crate) elements: u64,
    pub(crate) clock: String,
    pub(crate) seconds: f64,
    pub(crate) gb_per_s: f64,
    pub(crate) percent_of_roofline: Option<f64>,
    pub(crate) encode_seconds: Option<f64>,
    pub(crate) prepare_seconds: Option<f64>,
    pub(crate) scratch_bytes: Option<f64>,
}

/// The measurement of a training step that clips in one way.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Step {
    pub(crate) set: String,
    /// The way to clip.
    #[serde(rename = "step")]
    pub(crate) way: String,
    pub(crate) tensors: usize,
    pub(crate) tensors_of_model: usize,
    pub(crate) seconds: f64,
    /// None on a software adapter.
    pub(crate) clip_share: Option<f64>,
    pub(crate) clip_dispatches: usize,
    pub(crate) clip_bytes: u64,
}

/// A line of the host bench: the host's times for a clip of `buffers` small buffers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Host {
    pub(crate) gpu: String,
    pub(crate) buffers: usize,
    pub(crate) dispatches: usize,
    pub(crate) encode_seconds: f64,
    pub(crate) ready_seconds: f64,
    pub(crate) prepare_seconds: f64,
}

/// The rows of one run of gradclip, and the interleaved rows of PyTorch.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) gradclip: Option<Machine>,
    pub(crate) pytorch: Option<Machine>,
    pub(crate) rows: Vec<Row>,
    pub(crate) steps: Vec<Step>,
}

/// The lines of all files.
#[derive(Debug, Default)]
pub(crate) struct SavedLines {
    pub(crate) runs: Vec<Run>,
    pub(crate) hosts: Vec<Host>,
}

impl SavedLines {
    pub(crate) fn read(files: &[PathBuf]) -> Result<Self> {
        let mut lines = Self::default();
        for path in files {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            lines.add(path, &text)?;
        }
        Ok(lines)
    }

    /// Adds the lines of one file.
    pub(crate) fn add(&mut self, path: &Path, text: &str) -> Result<()> {
        // Runs do not continue across files.
        self.runs.push(Run::default());
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let at = || format!("{}, line {}", path.display(), index + 1);
            match serde_json::from_str(line).with_context(at)? {
                JsonLine::Machine(machine) => self.begin(machine),
                JsonLine::Operation(row) | JsonLine::Roofline(row) => {
                    let positive = row.seconds > 0.0 && row.seconds.is_finite();
                    ensure!(
                        positive,
                        "{}: seconds is {}, but must be positive and finite",
                        at(),
                        row.seconds
                    );
                    if let Some(run) = self.runs.last_mut() {
                        run.rows.push(row);
                    }
                }
                JsonLine::Step(step) => {
                    if let Some(run) = self.runs.last_mut() {
                        run.steps.push(step);
                    }
                }
                JsonLine::Host(host) => self.hosts.push(host),
                JsonLine::Other => {}
            }
        }
        self.runs.retain(|run| !run.rows.is_empty() || !run.steps.is_empty());
        Ok(())
    }

    /// Starts a run. `compare.py` writes one machine line of PyTorch, and one of gradclip before the rows of each set.
    fn begin(&mut self, machine: Machine) {
        match &*machine.library {
            GRADCLIP => {
                let pytorch = self.runs.last().and_then(|run| run.pytorch.clone());
                self.runs.push(Run { gradclip: Some(machine), pytorch, ..Run::default() });
            }
            PYTORCH => self.runs.push(Run { pytorch: Some(machine), ..Run::default() }),
            _ => {}
        }
    }

    /// Returns the distinct machine lines of all runs.
    pub(crate) fn machines(&self) -> Vec<&Machine> {
        let mut machines = Vec::new();
        for machine in self.runs.iter().flat_map(|run| run.gradclip.iter().chain(&run.pytorch)) {
            if !machines.contains(&machine) {
                machines.push(machine);
            }
        }
        machines
    }

    /// Iterates over all rows with their runs.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&Run, &Row)> {
        self.runs.iter().flat_map(|run| run.rows.iter().map(move |row| (run, row)))
    }

    /// Returns the ratio of a PyTorch row's time to gradclip's time for each of gradclip's layouts.
    ///
    /// Uses gradclip's rows of the same run, or those of any run if that run has none.
    pub(crate) fn over_gradclip<'a>(&'a self, run: &'a Run, pytorch: &'a Row) -> Vec<(&'a Row, f64)> {
        let same =
            |row: &&Row| row.is_gradclip() && row.same_set(pytorch) && row.operation == pytorch.operation;
        let mut rows: Vec<&Row> = run.rows.iter().filter(same).collect();
        if rows.is_empty() {
            rows = self.rows().map(|(_, row)| row).filter(same).collect();
        }
        rows.into_iter().map(|row| (row, pytorch.seconds / row.seconds)).collect()
    }
}

impl Run {
    /// Returns gradclip's row of another operation on the same set, path and `layout`. A roofline matches any layout.
    pub(crate) fn find_same_set(&self, row: &Row, layout: &str, operation: &str) -> Option<&Row> {
        self.rows.iter().find(|other| {
            let layouts = other.layout == layout || operation.starts_with("roofline");
            other.is_gradclip() && other.same_set(row) && layouts && other.operation == operation
        })
    }

    /// Returns the time of `row` over the time of another operation in the same layout.
    pub(crate) fn over(&self, row: &Row, operation: &str) -> Option<f64> {
        Some(row.seconds / self.find_same_set(row, &row.layout, operation)?.seconds)
    }

    /// Returns the time of `row` over the sum of the times of two other operations.
    pub(crate) fn over_both(&self, row: &Row, one: &str, other: &str) -> Option<f64> {
        let [one, other] = [one, other].map(|operation| self.find_same_set(row, &row.layout, operation));
        Some(row.seconds / (one?.seconds + other?.seconds))
    }

    /// Returns the number of threads of the CPU path.
    pub(crate) fn threads(&self) -> Option<usize> {
        self.gradclip.as_ref()?.threads
    }
}

impl Row {
    pub(crate) fn is_gradclip(&self) -> bool {
        self.library == GRADCLIP
    }

    pub(crate) fn is_pytorch(&self) -> bool {
        self.library == PYTORCH
    }

    pub(crate) fn is_roofline(&self) -> bool {
        self.operation.starts_with("roofline")
    }

    /// Whether two rows measure the same set on the same path, in any layout.
    fn same_set(&self, other: &Self) -> bool {
        self.path == other.path && self.name() == other.name()
    }

    /// Returns the set's name and dtype, plus its number of tensors if the model was cut.
    pub(crate) fn name(&self) -> String {
        let Self { set, dtype, tensors, tensors_of_model: of, .. } = self;
        let cut = if tensors == of { String::new() } else { format!(", {tensors} of {of} tensors") };
        format!("{set} {dtype}{cut}")
    }

    /// Returns the size of the gradients in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.elements * if self.dtype == "f32" { 4 } else { 2 }
    }
}

/// Groups values by name, in order of first appearance, and returns the median of each group.
pub(crate) fn medians(values: impl IntoIterator<Item = (String, f64)>) -> Vec<(String, f64)> {
    let mut groups: Vec<(String, Vec<f64>)> = Vec::new();
    for (name, value) in values {
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, all)) => all.push(value),
            None => groups.push((name, vec![value])),
        }
    }
    let median = |(name, all)| Some((name, Quartiles::of(all)?.median));
    groups.into_iter().filter_map(median).collect()
}
