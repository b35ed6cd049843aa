//! `gradclip clip`: clips the gradients in files, writes the clipped files and reports the norms.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, ensure};
use gradclip::cpu::{self, ClipPlan, Measurement};
use gradclip::slices::{Clipped, DeviceChoice, SliceClipper, SliceDevice};
use gradclip::stats::TensorStats;
use gradclip::{Clip, ClipRecord, Error};
use gradclip_measure::machine::available_memory;
use gradclip_measure::text::quoted;

use crate::clip_options::{ClipOptions, Scope};
use crate::file::{Chunk, Gradients, Inputs, Output, Target, Tensor, Writer};
use crate::plot;
use crate::progress::Progress;
use crate::report::{GroupRow, Report, TensorRow};
use crate::stages::Stages;
use crate::stdout;

/// Clip the gradients in .safetensors files
///
/// Prints each tensor's norm, the total norm before and after clipping, and the time of each stage.
///
/// Several files, or the shards of an index, form one set of gradients with one total norm. The CPU path reads them in
/// chunks, so they may be larger than memory. A GPU needs all of them in memory.
///
/// The output replaces an existing file only once it is completely on disk. It keeps that file's owner and mode, but
/// not its access control lists or extended attributes. Several files are replaced in sequence. On SIGHUP, SIGINT and
/// SIGTERM the command removes unfinished files. If it is killed otherwise, files named .gradclip-* may remain beside
/// the output; they can be deleted.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Files of named F32, F16 or BF16 tensors, or the .safetensors.index.json of a sharded model
    #[arg(value_name = "GRADS.safetensors", required = true)]
    gradients: Vec<PathBuf>,

    #[command(flatten)]
    options: ClipOptions,

    /// Write the clipped gradients to this file, which may be the input
    ///
    /// With several input files, or an index, this is a folder, in which the files and the index keep their names. It
    /// may be the folder of the input files, and is created if it does not exist.
    #[arg(short, long, value_name = "OUT.safetensors|DIR")]
    output: Option<PathBuf>,

    /// The device: auto (a hardware GPU if present, else the CPU), gpu (also a software adapter), cpu, or part of a
    /// GPU's name
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// Plot each tensor's norm before and after clipping
    ///
    /// The plot shows the group norms, then the tensors in file order, on a logarithmic axis with the limits.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// Print one JSON object instead of tables
    ///
    /// NaN and infinities are written as strings. With --groups, the top-level norms and coefficient are those of the
    /// tensors that match no pattern, and null if there are none.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let options = &args.options;
    // Invalid limits, unwritable outputs and missing devices are reported before any long work.
    Clip::checked_groups(&options.clips())?;
    options.check_total_norm()?;
    let inputs = Inputs::new(&args.gradients)?;
    let output = args.output.as_deref().map(|path| Output::check(path, inputs.need_folder())).transpose()?;
    let others = || {
        let within = |path: &PathBuf| Some(args.output.as_ref()?.join(path.file_name()?));
        let read = args.gradients.iter().chain(inputs.paths()).cloned();
        read.chain(args.output.clone()).chain(inputs.paths().iter().filter_map(within))
    };
    let plot = args.plot.as_deref().map(|path| plot::Output::check(path, others())).transpose()?;

    let progress = Progress::new(args.json);
    let mut stages = Stages::new(&progress);
    let files = stages.time("read", || inputs.open())?;
    let groups = options.assign(files.names())?;
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
    let outcome = clip(&mut gradients, options, &clipper, plot.is_some(), targets, &mut stages)?;

    let group_of = gradients.group_of();
    let report = Report {
        scope: options.scope(),
        groups: outcome.groups(options, group_of),
        excluded: gradients.excluded().to_vec(),
        tensors: outcome.rows(gradients.tensors(), group_of),
        device: outcome.device.to_string(),
        seconds: stages.seconds(),
    };
    drop(progress);
    let printed = if args.json { report.write_json(out) } else { report.write_table(out) };
    // If one of them fails, the other is still written.
    let drawn = plot.map_or(Ok(()), |plot| plot.write(&plot::norms(&report)?));
    printed.and_then(|()| out.flush()).context(stdout::PRINT_FAILED).and(drawn)
}

/// Checks that main memory can hold the gradients and the staging memory of the upload.
fn fits_into_memory(gradients: &Gradients) -> Result<()> {
    let (needed, available) = (gradients.bytes(), available_memory().map_or(u64::MAX, |bytes| bytes as u64));
    let largest = gradients
        .largest()
        .map(|tensor| format!(" (tensor {} alone takes {})", quoted(&tensor.name), tensor.bytes));
    let allowed = available / 10 * 9;
    ensure!(
        needed <= allowed,
        "the gradients take {needed} bytes{}, and a GPU needs all of them in main memory, where at most {allowed} bytes \
         (90 % of the available memory) may be used; --device cpu reads them in chunks",
        largest.unwrap_or_default()
    );
    Ok(())
}

/// The result of clipping.
struct Outcome {
    scope: Scope,
    stats: Vec<TensorStats>,
    records: Vec<ClipRecord>,
    /// The norm of each group before clipping.
    before: Vec<f32>,
    /// The norm of each group after clipping.
    after: Vec<f32>,
    /// The norm of each tensor after clipping, if the plot needs them.
    norms_after: Option<Vec<f32>>,
    device: SliceDevice,
}

/// Measures the tensors, clips them, measures them again and writes them.
fn clip(
    gradients: &mut Gradients,
    options: &ClipOptions,
    clipper: &SliceClipper,
    with_tensor_norms: bool,
    targets: Option<Vec<Target>>,
    stages: &mut Stages<'_>,
) -> Result<Outcome> {
    let (scope, clips, [_, after]) = (options.scope(), options.clips(), options.measurement_clips());
    let group_of = gradients.group_of().to_vec();
    let InitialMeasurement { stats, norms, records } = measure(gradients, options, &group_of, stages)?;
    let is_in_memory = gradients.is_in_memory();
    let (records, device) = if is_in_memory {
        clip_in_memory(gradients, options, clipper, stages)?
    } else {
        (records, SliceDevice::Cpu { threads: cpu::threads() })
    };
    let of_records = || records.iter().map(|record| record.total_norm).collect();
    let before = if scope == Scope::Group { of_records() } else { norms };

    let after = if with_tensor_norms { after.tensor_stats() } else { after };
    let mut measurement = ChunkedMeasurement::new(&vec![after; clips.len()], &group_of)?;
    let writer = targets.map(Writer::new).transpose()?;
    gradients.pass(stages, writer, |chunk, stages| {
        if !is_in_memory {
            let (tensor, group) = (chunk.tensor, group_of[chunk.tensor]);
            let mut gradient = [chunk.gradient()];
            stages.time("clip", || {
                match scope {
                    Scope::Element => drop(cpu::clip(&mut gradient, clips[group])?),
                    Scope::Tensor => cpu::scale(&mut gradient, &records[tensor]),
                    Scope::Group => cpu::scale(&mut gradient, &records[group]),
                }
                Ok::<_, Error>(())
            })?;
        }
        stages.time("measure", || measurement.add(chunk))
    })?;
    let after = measurement.conclude()?.iter().map(|record| record.total_norm).collect();
    let norms_after =
        with_tensor_norms.then(|| measurement.plan.tensor_stats().iter().map(|stats| stats.norm).collect());
    Ok(Outcome { scope, stats, records, before, after, norms_after, device })
}

/// The measurement before clipping.
struct InitialMeasurement {
    stats: Vec<TensorStats>,
    /// The norm of each group.
    norms: Vec<f32>,
    /// The records to scale by. Empty for a clip by value, and for tensors in memory, which the device measures itself.
    records: Vec<ClipRecord>,
}

/// Measures all tensors in chunks.
fn measure(
    gradients: &mut Gradients,
    options: &ClipOptions,
    group_of: &[usize],
    stages: &mut Stages<'_>,
) -> Result<InitialMeasurement> {
    let (scope, clips, [before, _]) = (options.scope(), options.clips(), options.measurement_clips());
    let needs_records = !gradients.is_in_memory() && options.total_norm().is_none();
    // A clip by group yields the group norms itself. A clip per tensor needs both measurements.
    let is_per_group = needs_records && scope == Scope::Group;
    let by_group = if is_per_group { clips.clone() } else { vec![before; clips.len()] };
    let by_group: Vec<Clip> = by_group.into_iter().map(Clip::tensor_stats).collect();
    let mut by_group = ChunkedMeasurement::new(&by_group, group_of)?;
    let is_per_tensor = needs_records && scope == Scope::Tensor;
    let mut by_tensor = is_per_tensor.then(|| ChunkedMeasurement::new(&clips, group_of)).transpose()?;
    gradients.pass(stages, None, |chunk, stages| {
        stages.time("measure", || {
            by_group.add(chunk)?;
            by_tensor.as_mut().map_or(Ok(()), |by_tensor| by_tensor.add(chunk))
        })
    })?;
    let with_tensor_name = |error| with_tensor_name(error, gradients.tensors());
    let group_records = by_group.conclude().map_err(with_tensor_name)?;
    let norms = group_records.iter().map(|record| record.total_norm).collect();
    let records = match (by_tensor, options.total_norm()) {
        (Some(mut by_tensor), _) => by_tensor.conclude().map_err(with_tensor_name)?,
        (None, Some(norm)) if !gradients.is_in_memory() => {
            vec![cpu::clip_with_norm(&mut [], clips[0], norm)?]
        }
        _ if is_per_group => group_records,
        _ => Vec::new(),
    };
    Ok(InitialMeasurement { stats: by_group.plan.tensor_stats().to_vec(), norms, records })
}

/// Clips the tensors in memory on the clipper's device.
fn clip_in_memory(
    gradients: &mut Gradients,
    options: &ClipOptions,
    clipper: &SliceClipper,
    stages: &mut Stages<'_>,
) -> Result<(Vec<ClipRecord>, SliceDevice)> {
    stages.stage("clip");
    let clips = options.clips();
    let mut list = gradients.gradients();
    let clipped = match options.total_norm() {
        Some(norm) => clipper
            .clip_with_norm(&mut list, clips[0], norm)
            .map(|Clipped { record, device, timings }| Clipped { record: vec![record], device, timings }),
        None => clipper.clip_groups(&mut list, &clips),
    };
    drop(list);
    let Clipped { record, device, timings } =
        clipped.map_err(|error| with_tensor_name(error, gradients.tensors()))?;
    stages.add("upload", timings.upload);
    stages.add("clip", timings.clip);
    stages.add("download", timings.download);
    Ok((record, device))
}

/// A measurement of all tensors in chunks.
struct ChunkedMeasurement<'a> {
    plan: ClipPlan,
    measurements: Vec<Measurement>,
    group_of: &'a [usize],
}

impl<'a> ChunkedMeasurement<'a> {
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
    fn rows(&self, tensors: &[Tensor], group_of: &[usize]) -> Vec<TensorRow> {
        let tensor_record =
            |index: usize| self.records.get(index).filter(|_| self.scope == Scope::Tensor).copied();
        let row = |(index, tensor): (usize, &Tensor)| TensorRow {
            tensor: tensor.clone(),
            stats: self.stats[index],
            norm_after: self.norms_after.as_ref().map(|norms| norms[index]),
            record: tensor_record(index),
            group: group_of[index],
        };
        tensors.iter().enumerate().map(row).collect()
    }

    fn groups(&self, options: &ClipOptions, group_of: &[usize]) -> Vec<GroupRow> {
        let group_record =
            |index: usize| self.records.get(index).filter(|_| self.scope == Scope::Group).copied();
        let group = |(index, (pattern, limit))| GroupRow {
            pattern,
            limit,
            norms: group_of.contains(&index).then(|| [self.before[index], self.after[index]]),
            record: group_record(index),
        };
        options.patterns().zip(options.limits()).enumerate().map(group).collect()
    }
}

/// Replaces the gradient's index in an error by the tensor's name.
fn with_tensor_name(error: Error, tensors: &[Tensor]) -> anyhow::Error {
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
