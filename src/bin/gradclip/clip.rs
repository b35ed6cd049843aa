//! `gradclip clip`: a file of gradients in, their norms and the clipped file out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use gradclip::cpu::{self, Gradient};
use gradclip::{Clip, ClipRecord, Clipped, DeviceChoice, Error, SliceClipper, SliceDevice, TensorStats};

use crate::file::{Gradients, Output, Tensor};
use crate::manner::{Manner, Scope};
use crate::progress::Progress;
use crate::report::{Group, Report, Row};

/// Clip the gradients in a .safetensors file
///
/// Prints the norm of each tensor, the total norm before and after, and what took how long.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The gradients: a file of named tensors of F32, F16 or BF16
    #[arg(value_name = "GRADS.safetensors")]
    gradients: PathBuf,

    #[command(flatten)]
    manner: Manner,

    /// Write the clipped gradients to this file, which may be the one that they come from
    #[arg(short, long, value_name = "OUT.safetensors")]
    output: Option<PathBuf>,

    /// Where to clip: auto (a GPU, if there is one), gpu, cpu, or part of a GPU's name
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<String> {
    let manner = &args.manner;
    // An impossible limit, an output out of reach and a missing device should not be found only after long work.
    cpu::clip_groups(&mut [], &manner.clips())?;
    let output = args.output.as_deref().map(Output::check).transpose()?;

    let progress = Progress::new(args.json);
    let mut stages = Stages::new(&progress);
    let clipper = stages.time("open", || SliceClipper::new(&args.device))?;
    let mut gradients = stages.time("read", || Gradients::read(&args.gradients, &progress))?;
    let tensors = gradients.tensors().to_vec();
    let group_of: Vec<usize> = tensors.iter().map(|tensor| manner.group_of(&tensor.name)).collect();
    let outcome = clip(&mut gradients.list(&group_of), manner, &clipper, &mut stages)
        .map_err(|error| named(error, &tensors))?;
    match output {
        Some(output) => stages.time("write", || output.write(gradients, &progress))?,
        None => stages.add("write", Duration::ZERO),
    }

    let report = Report {
        scope: manner.scope(),
        tensors: outcome.rows(tensors, &group_of),
        groups: outcome.groups(manner),
        device: outcome.device.to_string(),
        seconds: stages.seconds,
    };
    Ok(if args.json { report.json() } else { report.table() })
}

/// What came of clipping.
struct Outcome {
    scope: Scope,
    stats: Vec<TensorStats>,
    records: Vec<ClipRecord>,
    /// The norm of each group.
    before: Vec<f32>,
    after: Vec<f32>,
    device: SliceDevice,
}

fn clip(
    gradients: &mut [Gradient<'_>],
    manner: &Manner,
    clipper: &SliceClipper,
    stages: &mut Stages<'_>,
) -> Result<Outcome, Error> {
    let (scope, clips, [before, after]) = (manner.scope(), manner.clips(), manner.measures());
    let (stats, measured) = stages.time("measure", || {
        // The clip itself measures groups, if it scales them.
        let groups = if scope == Scope::Group { Vec::new() } else { norms(gradients, before, clips.len())? };
        Ok((cpu::tensor_stats(gradients, before)?, groups))
    })?;
    stages.progress.stage("clip");
    let Clipped { record: records, device, timings } = clipper.clip_groups(gradients, &clips)?;
    stages.add("upload", timings.upload);
    stages.add("clip", timings.clip);
    stages.add("download", timings.download);
    let after = stages.time("measure", || norms(gradients, after, clips.len()))?;
    let found = records.iter().map(|record| record.total_norm);
    let before = if scope == Scope::Group { found.collect() } else { measured };
    Ok(Outcome { scope, stats, records, before, after, device })
}

impl Outcome {
    fn rows(&self, tensors: Vec<Tensor>, group_of: &[usize]) -> Vec<Row> {
        let own = |index: usize| self.records.get(index).filter(|_| self.scope == Scope::Tensor).copied();
        let row = |(index, tensor)| Row {
            tensor,
            stats: self.stats[index],
            record: own(index),
            group: group_of[index],
        };
        tensors.into_iter().enumerate().map(row).collect()
    }

    fn groups(&self, manner: &Manner) -> Vec<Group> {
        let joint = |index: usize| self.records.get(index).filter(|_| self.scope == Scope::Group).copied();
        let group = |(index, (pattern, limit))| Group {
            pattern,
            limit,
            total_norm: self.before[index],
            total_norm_after: self.after[index],
            record: joint(index),
        };
        manner.patterns().zip(manner.limits()).enumerate().map(group).collect()
    }
}

/// The norm of each of so many groups. Writes nothing.
fn norms(gradients: &mut [Gradient<'_>], clip: Clip, groups: usize) -> Result<Vec<f32>, Error> {
    let records = cpu::clip_groups(gradients, &vec![clip; groups])?;
    Ok(records.iter().map(|record| record.total_norm).collect())
}

/// An error in the names of the file.
fn named(error: Error, tensors: &[Tensor]) -> anyhow::Error {
    match error {
        Error::NonFinite { gradient: Some(gradient), total_norm, .. } => {
            let name = &tensors[gradient.index].name;
            anyhow!("tensor {name:?} is not finite: the norm is {total_norm}, and nothing was clipped")
        }
        other => other.into(),
    }
}

/// What took how long, in the order of the first time.
struct Stages<'a> {
    progress: &'a Progress,
    seconds: Vec<(&'static str, Duration)>,
}

impl<'a> Stages<'a> {
    const fn new(progress: &'a Progress) -> Self {
        Self { progress, seconds: Vec::new() }
    }

    fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        self.progress.stage(name);
        let start = Instant::now();
        let result = work();
        self.add(name, start.elapsed());
        result
    }

    fn add(&mut self, name: &'static str, time: Duration) {
        match self.seconds.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += time,
            None => self.seconds.push((name, time)),
        }
    }
}
