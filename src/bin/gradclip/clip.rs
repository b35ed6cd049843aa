//! `gradclip clip`: a file of gradients in, their norms and the clipped file out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use gradclip::{Clip, Clipped, DeviceChoice, SliceClipper, cpu};

use crate::file::{Gradients, Output};
use crate::progress::Progress;
use crate::report::Report;

/// Clip the gradients in a .safetensors file
///
/// Prints the norm of each tensor, the total norm before and after, and what took how long.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The gradients: a file of named F32 tensors
    #[arg(value_name = "GRADS.safetensors")]
    gradients: PathBuf,

    #[command(flatten)]
    limit: Limit,

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

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Limit {
    /// Scale all tensors by one factor, so that their joint L2 norm is at most this
    #[arg(long, value_name = "NORM", allow_hyphen_values = true)]
    max_norm: Option<f32>,

    /// Clamp every element to [-VALUE, VALUE]
    #[arg(long, allow_hyphen_values = true)]
    value: Option<f32>,
}

impl Limit {
    fn clip(&self) -> Clip {
        match (self.max_norm, self.value) {
            (Some(max_norm), _) => Clip::by_global_norm(max_norm),
            (None, value) => Clip::by_value(value.expect("clap requires one of the two")),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<String> {
    let clip = args.limit.clip();
    // An impossible limit, an output out of reach and a missing device should not be found only after long work.
    cpu::clip(&mut [], clip)?;
    let output = args.output.as_deref().map(Output::check).transpose()?;

    let progress = Progress::new(args.json);
    let mut stages = Stages::new(&progress);
    let clipper = stages.time("open", || SliceClipper::new(&args.device))?;
    let mut gradients = stages.time("read", || Gradients::read(&args.gradients, &progress))?;
    let (norms, measured) = stages.time("measure", || (norms(&gradients), total_norm(&gradients)));

    progress.stage("clip");
    let Clipped { record, device, timings } = clipper.clip(&mut gradients.slices_mut(), clip)?;
    stages.add("upload", timings.upload);
    stages.add("clip", timings.clip);
    stages.add("download", timings.download);

    let total_norm_after = stages.time("measure", || total_norm(&gradients));
    let tensors = gradients.tensors().to_vec();
    match output {
        Some(output) => stages.time("write", || output.write(gradients, &progress))?,
        None => stages.add("write", Duration::ZERO),
    }

    let report = Report {
        tensors: tensors.into_iter().zip(norms).collect(),
        total_norm: record.map_or(measured, |record| record.total_norm),
        total_norm_after,
        clip_coef: record.map(|record| record.clip_coef),
        device: device.to_string(),
        seconds: stages.seconds,
    };
    Ok(if args.json { report.json() } else { report.table() })
}

fn norms(gradients: &Gradients) -> Vec<f32> {
    gradients.slices().iter().map(|tensor| cpu::total_norm(&[tensor])).collect()
}

fn total_norm(gradients: &Gradients) -> f32 {
    cpu::total_norm(&gradients.slices())
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
