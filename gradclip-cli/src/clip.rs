//! `gradclip clip`: files of gradients in, their norms and the clipped files out.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, ensure};
use gradclip::cpu::{self, ClipPlan, Measurement};
use gradclip::slices::{Clipped, DeviceChoice, SliceClipper, SliceDevice};
use gradclip::stats::TensorStats;
use gradclip::{Clip, ClipRecord, Error};
use gradclip_measure::cpu::available_memory;
use gradclip_measure::text::quoted;

use crate::file::{Chunk, Gradients, Inputs, Output, Target, Tensor, Writer};
use crate::manner::{Manner, Scope};
use crate::plot;
use crate::progress::Progress;
use crate::report::{Group, Report, Row};
use crate::stages::Stages;
use crate::stdout;

/// Clip the gradients in .safetensors files
///
/// Prints each tensor's norm, the total norm before and after clipping, and the time of each stage.
///
/// Several files, or the shards of an index, are one set of gradients with one joint norm. The CPU path reads them piece by
/// piece, so they may be larger than memory. A GPU needs all of them in memory.
///
/// Output replaces an existing file only once it is completely on disk, and keeps that file's owner and mode, but no access
/// control lists or extended attributes. Several files are replaced one after the other. On SIGHUP, SIGINT and SIGTERM
/// the command removes unfinished files. If it is killed in another way, files named .gradclip-* may remain beside the output;
/// they can be deleted.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Files of named F32, F16 or BF16 tensors, or the .safetensors.index.json of a sharded model
    #[arg(value_name = "GRADS.safetensors", required = true)]
    gradients: Vec<PathBuf>,

    #[command(flatten)]
    manner: Manner,

    /// Write the clipped gradients to this file, which may be the input
    ///
    /// With several input files, or an index, this is a folder, in which files and index keep their names. It may be the folder
    /// of the input files, and is created if it does not exist.
    #[arg(short, long, value_name = "OUT.safetensors|DIR")]
    output: Option<PathBuf>,

    /// The device: auto (a GPU if there is one), gpu (even a software adapter), cpu, or part of a GPU's name
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// Draw each tensor's norm before and after clipping
    ///
    /// Group norms come first, then the tensors in the order of the files, on a logarithmic axis with the limits.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// Print one JSON object instead of tables
    ///
    /// NaN and infinities are written as strings. With --groups, the top-level norms and coefficient are those of the tensors
    /// that match no pattern, and null if there are none.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let manner = &args.manner;
    // An impossible limit, an output out of reach and a missing device should not be found only after long work.
    Clip::checked_groups(&manner.clips())?;
    manner.check_total_norm()?;
    let inputs = Inputs::new(&args.gradients)?;
    let output = args.output.as_deref().map(|path| Output::check(path, inputs.are_several())).transpose()?;
    let others = || {
        let within = |path: &PathBuf| Some(args.output.as_ref()?.join(path.file_name()?));
        let read = args.gradients.iter().chain(inputs.paths()).cloned();
        read.chain(args.output.clone()).chain(inputs.paths().iter().filter_map(within))
    };
    let plot = args.plot.as_deref().map(|path| plot::Output::check(path, others())).transpose()?;

    let progress = Progress::new(args.json);
    let mut stages = Stages::new(&progress);
    let files = stages.time("read", || inputs.open())?;
    let groups = manner.assign(files.names())?;
    let mut gradients = Gradients::new(files, &groups)?;
    let targets = output.map(|output| gradients.targets(output)).transpose()?;
    let mut clipper = stages.time("open", || SliceClipper::new(&args.device))?;
    if matches!(clipper.device(), SliceDevice::Gpu(_)) {
        if let Err(error) = fits_into_memory(&gradients) {
            ensure!(args.device == DeviceChoice::Auto, error);
            log::warn!("{error:#}; clipping on the CPU path");
            clipper = SliceClipper::new(&DeviceChoice::Cpu)?;
        } else {
            gradients.load(&mut stages)?;
        }
    }
    let outcome = clip(&mut gradients, manner, &clipper, plot.is_some(), targets, &mut stages)?;

    let group_of = gradients.group_of();
    let report = Report {
        scope: manner.scope(),
        groups: outcome.groups(manner, group_of),
        excluded: gradients.excluded().to_vec(),
        tensors: outcome.rows(gradients.tensors(), group_of),
        device: outcome.device.to_string(),
        seconds: stages.seconds(),
    };
    drop(progress);
    let printed = if args.json { report.write_json(out) } else { report.write_table(out) };
    // Neither is lost because of the other.
    let drawn = plot.map_or(Ok(()), |plot| plot.write(&plot::norms(&report)?));
    printed.and_then(|()| out.flush()).context(stdout::FAILED).and(drawn)
}

/// Fails unless a GPU's way through main memory is open: for the gradients, and what is on its way to the device.
fn fits_into_memory(gradients: &Gradients) -> Result<()> {
    let (needed, available) = (gradients.bytes(), available_memory().map_or(u64::MAX, |bytes| bytes as u64));
    let largest = gradients
        .largest()
        .map(|tensor| format!(" (tensor {} alone takes {})", quoted(&tensor.name), tensor.bytes));
    let allowed = available / 10 * 9;
    ensure!(
        needed <= allowed,
        "the gradients take {needed} bytes{}, and a GPU needs all of them in main memory, of which they may take {allowed} bytes \
         (90 % of what is available); --device cpu reads them piece by piece",
        largest.unwrap_or_default()
    );
    Ok(())
}

/// What came of clipping.
struct Outcome {
    scope: Scope,
    stats: Vec<TensorStats>,
    records: Vec<ClipRecord>,
    /// The norm of each group.
    before: Vec<f32>,
    after: Vec<f32>,
    /// The norm of each tensor, if they are wanted.
    norms_after: Option<Vec<f32>>,
    device: SliceDevice,
}

/// Measures, clips, measures again and writes.
fn clip(
    gradients: &mut Gradients,
    manner: &Manner,
    clipper: &SliceClipper,
    norms_wanted: bool,
    targets: Option<Vec<Target>>,
    stages: &mut Stages<'_>,
) -> Result<Outcome> {
    let (scope, clips, [_, after]) = (manner.scope(), manner.clips(), manner.measures());
    let group_of = gradients.group_of().to_vec();
    let Measured { stats, norms, records } = measure(gradients, manner, &group_of, stages)?;
    let is_in_memory = gradients.is_in_memory();
    let (records, device) = if is_in_memory {
        clip_in_memory(gradients, manner, clipper, stages)?
    } else {
        (records, SliceDevice::Cpu { threads: cpu::threads() })
    };
    let of_records = || records.iter().map(|record| record.total_norm).collect();
    let before = if scope == Scope::Group { of_records() } else { norms };

    let after = if norms_wanted { after.tensor_stats() } else { after };
    let mut measured = Measuring::new(&vec![after; clips.len()], &group_of)?;
    let writer = targets.map(Writer::new).transpose()?;
    gradients.pass(stages, writer, |chunk, stages| {
        if !is_in_memory {
            let (tensor, group) = (chunk.tensor, group_of[chunk.tensor]);
            let mut piece = [chunk.gradient()];
            stages.time("clip", || {
                match scope {
                    Scope::Element => drop(cpu::clip(&mut piece, clips[group])?),
                    Scope::Tensor => cpu::scale(&mut piece, &records[tensor]),
                    Scope::Group => cpu::scale(&mut piece, &records[group]),
                }
                Ok::<_, Error>(())
            })?;
        }
        stages.time("measure", || measured.add(chunk))
    })?;
    let after = measured.conclude()?.iter().map(|record| record.total_norm).collect();
    let norms_after =
        norms_wanted.then(|| measured.plan.tensor_stats().iter().map(|stats| stats.norm).collect());
    Ok(Outcome { scope, stats, records, before, after, norms_after, device })
}

/// What is known before anything is clipped.
struct Measured {
    stats: Vec<TensorStats>,
    /// The norm of each group.
    norms: Vec<f32>,
    /// What the clip is to do. Nothing for a clip by value, nor where a device finds it by itself.
    records: Vec<ClipRecord>,
}

/// Measures all tensors, chunk by chunk.
fn measure(
    gradients: &mut Gradients,
    manner: &Manner,
    group_of: &[usize],
    stages: &mut Stages<'_>,
) -> Result<Measured> {
    let (scope, clips, [before, _]) = (manner.scope(), manner.clips(), manner.measures());
    let finds_records = !gradients.is_in_memory() && manner.total_norm().is_none();
    // The norms of a clip by group are those of the clip itself. Where each tensor is clipped by itself both are measured.
    let is_joint = finds_records && scope == Scope::Group;
    let joint = if is_joint { clips.clone() } else { vec![before; clips.len()] };
    let joint: Vec<Clip> = joint.into_iter().map(Clip::tensor_stats).collect();
    let mut joint = Measuring::new(&joint, group_of)?;
    let is_alone = finds_records && scope == Scope::Tensor;
    let mut alone = is_alone.then(|| Measuring::new(&clips, group_of)).transpose()?;
    gradients.pass(stages, None, |chunk, stages| {
        stages.time("measure", || {
            joint.add(chunk)?;
            alone.as_mut().map_or(Ok(()), |alone| alone.add(chunk))
        })
    })?;
    let named = |error| named(error, gradients.tensors());
    let of_groups = joint.conclude().map_err(named)?;
    let norms = of_groups.iter().map(|record| record.total_norm).collect();
    let records = match (alone, manner.total_norm()) {
        (Some(mut alone), _) => alone.conclude().map_err(named)?,
        (None, Some(norm)) if !gradients.is_in_memory() => {
            vec![cpu::clip_with_norm(&mut [], clips[0], norm)?]
        }
        _ if is_joint => of_groups,
        _ => Vec::new(),
    };
    Ok(Measured { stats: joint.plan.tensor_stats().to_vec(), norms, records })
}

/// Clips what is in memory by the device of the clipper.
fn clip_in_memory(
    gradients: &mut Gradients,
    manner: &Manner,
    clipper: &SliceClipper,
    stages: &mut Stages<'_>,
) -> Result<(Vec<ClipRecord>, SliceDevice)> {
    stages.stage("clip");
    let clips = manner.clips();
    let mut list = gradients.list();
    let clipped = match manner.total_norm() {
        Some(norm) => clipper
            .clip_with_norm(&mut list, clips[0], norm)
            .map(|Clipped { record, device, timings }| Clipped { record: vec![record], device, timings }),
        None => clipper.clip_groups(&mut list, &clips),
    };
    drop(list);
    let Clipped { record, device, timings } = clipped.map_err(|error| named(error, gradients.tensors()))?;
    stages.add("upload", timings.upload);
    stages.add("clip", timings.clip);
    stages.add("download", timings.download);
    Ok((record, device))
}

/// A measurement of all tensors, chunk by chunk.
struct Measuring<'a> {
    plan: ClipPlan,
    measurements: Vec<Measurement>,
    group_of: &'a [usize],
}

impl<'a> Measuring<'a> {
    fn new(clips: &[Clip], group_of: &'a [usize]) -> Result<Self> {
        Ok(Self { plan: ClipPlan::new(clips)?, measurements: Vec::new(), group_of })
    }

    fn add(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        if chunk.is_first {
            self.measurements.push(self.plan.begin_measurement()?.group(self.group_of[chunk.tensor]));
        }
        Ok(chunk.add_to(&mut self.measurements[chunk.tensor])?)
    }

    fn conclude(&mut self) -> Result<Vec<ClipRecord>, Error> {
        self.plan.finish_measurements(&self.measurements)
    }
}

impl Outcome {
    fn rows(&self, tensors: &[Tensor], group_of: &[usize]) -> Vec<Row> {
        let own = |index: usize| self.records.get(index).filter(|_| self.scope == Scope::Tensor).copied();
        let row = |(index, tensor): (usize, &Tensor)| Row {
            tensor: tensor.clone(),
            stats: self.stats[index],
            norm_after: self.norms_after.as_ref().map(|norms| norms[index]),
            record: own(index),
            group: group_of[index],
        };
        tensors.iter().enumerate().map(row).collect()
    }

    fn groups(&self, manner: &Manner, group_of: &[usize]) -> Vec<Group> {
        let joint = |index: usize| self.records.get(index).filter(|_| self.scope == Scope::Group).copied();
        let group = |(index, (pattern, limit))| Group {
            pattern,
            limit,
            norms: group_of.contains(&index).then(|| [self.before[index], self.after[index]]),
            record: joint(index),
        };
        manner.patterns().zip(manner.limits()).enumerate().map(group).collect()
    }
}

/// An error in the names of the file.
fn named(error: Error, tensors: &[Tensor]) -> anyhow::Error {
    match error {
        Error::NonFinite { gradient: Some(gradient), total_norm, .. } => {
            let name = quoted(&tensors[gradient.index].name);
            anyhow!(
                "tensor {name} is the first with an infinity or a NaN (the norm is {total_norm}); nothing was clipped"
            )
        }
        other => other.into(),
    }
}
