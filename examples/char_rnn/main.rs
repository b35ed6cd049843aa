//! Shows why gradients are clipped: `cargo run --release --example char_rnn -- --plot char_rnn.svg`
//!
//! A recurrent network learns three old poems, character by character. Everything runs on plain wgpu: forward pass,
//! backpropagation through time, clipping, AdamW. The hidden units are rectified linear, and the recurrent
//! weight starts as a multiple of the identity (Le, Jaitly and Hinton 2015, arXiv:1504.00941). That multiple is slightly
//! too large, so gradients explode through time (Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063).
//!
//! The network trains twice from the same initial parameters. With clipping, it learns. Without clipping, the first
//! steps move the parameters far away, and their gradients dominate AdamW's moments from then on: the loss stays above
//! that of a uniform prediction.
//!
//! Clipping takes two lines on the host, marked `// <-`: the plan, and a call in every step. No pass reads or writes the
//! gradients to clip them: gradients.wgsl measures them while they are in registers, and the optimizer applies the
//! coefficient as it reads each gradient. The example prints clipping's share of a step's time, this way and with separate
//! passes.

use std::env;
use std::error::Error;
use std::ops::Range;

use gradclip::kernels::Producer;
use gradclip::stats::StepCounts;
use gradclip::{Clip, ClipPlan, ClipRecord, Clipper, DType, Gradient, Partials};
use indicatif::{ProgressBar, ProgressStyle};
use wgpu::{CommandEncoder, Device, PollType, Queue};

#[path = "../common/mod.rs"]
mod common;
#[path = "../optimizer/optimizers.rs"]
mod optimizers;
mod plot;
mod text;
mod timing;

use common::{Kernel, read, storage};
use optimizers::{Adam, Clipped, Optimizer, Tensor};
use text::{Random, Text};
use timing::{Share, Timer};

/// Hidden units. Equals the workgroup size.
const HIDDEN: usize = 64;
/// Tokens in a sequence.
const LENGTH: usize = 48;
/// Sequences in a batch.
const BATCH: usize = 8;
const STEPS: usize = 300;
const LEARNING_RATE: f64 = 0.01;
const MAX_NORM: f32 = 1.0;
/// The recurrent weight starts as `GAIN` times the identity. Over 48 tokens, that is a factor of 1.3^48 = 294 632.
const GAIN: f32 = 1.3;
const SEED: u64 = 7;

/// How a step clips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clipping {
    None,
    /// A pass reads all gradients, and another one reads and writes them.
    InPasses,
    /// The kernels that produce the gradients measure them, and the optimizer scales them.
    InKernels,
}

/// The loss and the gradient norm of every step.
struct History {
    losses: Vec<f32>,
    norms: Vec<f32>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let plot = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        ["--plot", file] => Some(file.to_owned()),
        _ => return Err("usage: char_rnn [--plot FILE.svg]".into()),
    };
    let (device, queue) = common::open_with(timing::FEATURES);
    let text = Text::load();
    println!("{} characters, {} of them distinct", text.tokens.len(), text.characters.len());

    let timer = Timer::new(&device, &queue);
    let shares = clip_time_shares(&device, &queue, &text, &timer)?;

    let clipped = Training::new(&device, &text, Clip::by_global_norm(MAX_NORM), Clipping::InKernels)?;
    let with = clipped.run(&device, &queue, &text, "with clipping")?;
    let sample = text.sample(&read(&device, &queue, &clipped.parameters)?, "so long lives ", 160);
    // An infinite limit only measures: the coefficient is always 1.
    let unlimited = Clip::by_global_norm(f32::INFINITY);
    let unclipped = Training::new(&device, &text, unlimited, Clipping::InKernels)?;
    let without = unclipped.run(&device, &queue, &text, "without clipping")?;

    println!("        with clipping            without clipping");
    println!("step      loss          norm       loss          norm");
    for step in (0..STEPS).step_by(20).chain([STEPS - 1]) {
        let [a, b] = [&with, &without];
        println!(
            "{step:4}  {:8.3}  {:12.4e}  {:9.3}  {:12.4e}",
            a.losses[step], a.norms[step], b.losses[step], b.norms[step]
        );
    }
    println!("\na uniform prediction has a loss of {:.3}", text.uniform_loss());
    println!("clipping's share of a step, with quartiles ({}):", timer.clock());
    for (name, share) in &shares {
        let [median, low, high] = [share.median, share.low, share.high].map(|share| 100.0 * share);
        println!("  {name}: {median:.1} % ({low:.1} to {high:.1} %)");
    }
    println!("\nsampled after training with clipping: {sample}");
    if let Some(file) = plot {
        plot::save(
            file.as_ref(),
            &[("with clipping", &with), ("without clipping", &without)],
            text.uniform_loss(),
            &shares,
        )?;
        println!("\nwrote {file}");
    }
    let [with, without] = [&with, &without].map(|history| *history.losses.last().unwrap_or(&f32::NAN));
    let has_learned = with < 0.6 * text.uniform_loss();
    let has_diverged = without.is_nan() || without > text.uniform_loss();
    if has_learned && has_diverged {
        Ok(())
    } else {
        Err(format!("only the clipped run should learn, but the final losses are {with} and {without}")
            .into())
    }
}

/// Returns clipping's share of the time of a step: in separate passes, and in the kernels that have the gradients anyway. On a
/// busy processor, a software adapter's times vary by more than these shares. Both ways must give the same parameters, bit for
/// bit.
fn clip_time_shares(
    device: &Device,
    queue: &Queue,
    text: &Text,
    timer: &Timer,
) -> Result<[(String, Share); 2], Box<dyn Error>> {
    let training = |clipping| {
        let training = Training::new(device, text, Clip::by_global_norm(MAX_NORM), clipping)?;
        let batch = text.batch(&mut Random::new(SEED + 1));
        queue.write_buffer(&training.tokens, 0, bytemuck::cast_slice(&batch));
        Ok::<_, Box<dyn Error>>(training)
    };
    // All norms exceed the limit.
    let [none, passes, kernels] =
        [training(Clipping::None)?, training(Clipping::InPasses)?, training(Clipping::InKernels)?];
    let [without, in_passes, in_kernels] = timer.times([
        &|encoder: &mut CommandEncoder| none.encode_step(encoder),
        &|encoder: &mut CommandEncoder| passes.encode_step(encoder),
        &|encoder: &mut CommandEncoder| kernels.encode_step(encoder),
    ])?;
    let [in_passes, in_kernels] = [in_passes, in_kernels].map(|times| Share::of(&times, &without));
    let [a, b] = [read(device, queue, &passes.parameters)?, read(device, queue, &kernels.parameters)?];
    if a.iter().zip(&b).any(|(a, b)| a.to_bits() != b.to_bits()) {
        return Err("clipping in passes and clipping in kernels gave different parameters".into());
    }
    let name = |way, training: &Training| {
        let dispatches = training.plan.as_ref().map_or(0, ClipPlan::dispatches);
        let unit = if dispatches == 1 { "dispatch" } else { "dispatches" };
        format!("{way} ({dispatches} {unit})")
    };
    Ok([
        (name("in passes of its own", &passes), in_passes),
        (name("in kernels that have the gradients", &kernels), in_kernels),
    ])
}

/// The offset of each tensor in the parameter buffer, in elements. The embedding is at 0.
struct ParameterLayout {
    weight: usize,
    bias: usize,
    head: usize,
    head_bias: usize,
    len: usize,
}

impl ParameterLayout {
    fn new(vocabulary: usize) -> Self {
        let weight = vocabulary * HIDDEN;
        let bias = weight + HIDDEN * HIDDEN;
        let head = bias + HIDDEN;
        let head_bias = head + vocabulary * HIDDEN;
        Self { weight, bias, head, head_bias, len: head_bias + vocabulary }
    }

    /// Returns the parameters of the recurrent layer, and those of the head.
    fn parts(&self) -> [Range<usize>; 2] {
        [0..self.head, self.head..self.len]
    }

    /// Returns the sizes and offsets as WGSL constants.
    fn wgsl(&self, vocabulary: usize) -> String {
        let Self { weight, bias, head, head_bias, .. } = self;
        format!(
            "const HIDDEN = {HIDDEN}u;\nconst LENGTH = {LENGTH}u;\nconst BATCH = {BATCH}u;\n\
             const VOCABULARY = {vocabulary}u;\nconst EMBEDDING = 0u;\nconst WEIGHT = {weight}u;\n\
             const BIAS = {bias}u;\nconst HEAD = {head}u;\nconst HEAD_BIAS = {head_bias}u;\n"
        )
    }
}

/// The network on the device, with its optimizer.
struct Training {
    tokens: wgpu::Buffer,
    parameters: wgpu::Buffer,
    /// The forward and the backward pass.
    passes: Vec<Kernel>,
    /// None for a step without clipping.
    plan: Option<ClipPlan>,
    optimizer: Optimizer,
    mean_loss: wgpu::Buffer,
    losses: wgpu::Buffer,
    norms: wgpu::Buffer,
}

impl Training {
    fn new(device: &Device, text: &Text, clip: Clip, clipping: Clipping) -> Result<Self, Box<dyn Error>> {
        let vocabulary = text.characters.len();
        let layout = ParameterLayout::new(vocabulary);
        let zeros = |label, len| storage(device, label, &vec![0.0; len]);
        let tokens = zeros("tokens", BATCH * (LENGTH + 1));
        let parameters = storage(device, "parameters", &initial_parameters(vocabulary));
        let states = zeros("states", (LENGTH + 1) * BATCH * HIDDEN);
        let logit_grads = zeros("logit_grads", LENGTH * BATCH * vocabulary);
        let input_grads = zeros("input_grads", LENGTH * BATCH * HIDDEN);
        let gradients = zeros("gradients", layout.len);
        let (losses, mean_loss) = (zeros("losses", LENGTH * BATCH), zeros("mean_loss", 1));

        let kernel = |wgsl: &str, buffers: &[&wgpu::Buffer], invocations: usize| {
            let wgsl = [&layout.wgsl(vocabulary), wgsl].concat();
            Kernel::new(device, &wgsl, buffers, u32::try_from(invocations).expect("the network is small"))
        };
        // Each workgroup of gradients.wgsl holds a run of gradients and writes one partial.
        let producer = Producer::new(clip, DType::F32)?;
        let producer_wgsl = producer.wgsl()?;
        let runs = |range: &Range<usize>| (range.len() as u64).div_ceil(producer.elements());
        let [layer, head] = layout.parts();
        let partial_bytes = (runs(&layer) + runs(&head)) * producer.partial_bytes();
        let partials = zeros("partials", usize::try_from(partial_bytes)? / size_of::<f32>());
        let gradients_of = |range: &Range<usize>, first_partial: u64| {
            let constants = format!(
                "const FIRST = {}u;\nconst END = {}u;\nconst MEASURE = {};\nconst FIRST_PARTIAL = {first_partial}u;\n",
                range.start,
                range.end,
                clipping == Clipping::InKernels,
            );
            let wgsl = [&producer_wgsl, &constants, include_str!("gradients.wgsl")].concat();
            let buffers = [&tokens, &states, &logit_grads, &input_grads, &gradients, &partials];
            let invocations = runs(range) * u64::from(Kernel::WORKGROUP_SIZE);
            kernel(&wgsl, &buffers, usize::try_from(invocations).expect("the network is small"))
        };
        let passes = vec![
            kernel(include_str!("forward.wgsl"), &[&tokens, &parameters, &states], BATCH * HIDDEN),
            kernel(
                include_str!("output.wgsl"),
                &[&tokens, &parameters, &states, &logit_grads, &losses],
                LENGTH * BATCH,
            ),
            kernel(include_str!("mean.wgsl"), &[&losses, &mean_loss], 1),
            gradients_of(&head, runs(&layer)),
            kernel(
                include_str!("backward.wgsl"),
                &[&parameters, &states, &logit_grads, &input_grads],
                BATCH * HIDDEN,
            ),
            gradients_of(&layer, 0),
        ];

        let gradient = |range: &Range<usize>, first_partial: u64| {
            let gradient = Gradient::f32(&gradients).elements(range.start as u64..range.end as u64);
            let partials = Partials::new(&partials, producer.elements());
            match clipping {
                Clipping::InKernels => {
                    gradient.partials(partials.offset(first_partial * producer.partial_bytes()))
                }
                Clipping::InPasses | Clipping::None => gradient,
            }
        };
        let list = [gradient(&layer, 0), gradient(&head, runs(&layer))];
        let clipper = Clipper::new(device)?;
        let clip = clip.count_steps();
        let plan = match clipping {
            Clipping::None => None,
            Clipping::InPasses => Some(clipper.prepare(&list, clip)?),
            Clipping::InKernels => Some(clipper.prepare(&list, clip.coefficient_only())?), // <-
        };
        let unclipped = storage(device, "record", bytemuck::cast_slice(&[ClipRecord::UNCLIPPED]));
        let one_step = [StepCounts { steps: 1, ..StepCounts::default() }];
        let one_step = storage(device, "step counts", bytemuck::cast_slice(&one_step));
        let mut clipped = match &plan {
            Some(plan) => Clipped::by(plan).ok_or("the clip counts steps")?,
            None => Clipped { record: &unclipped, step_counts: &one_step },
        };
        if clipping == Clipping::InPasses {
            clipped.record = &unclipped;
        }
        let adam = Adam { learning_rate: LEARNING_RATE, weight_decay: 0.01, ..Adam::default() };
        let tensor = Tensor { parameters: &parameters, gradients: &gradients, dtype: DType::F32 };
        let optimizer = Optimizer::adamw(device, clipped, &[tensor], adam);
        let [losses, norms] = ["loss_history", "norm_history"].map(|label| zeros(label, STEPS));
        Ok(Self { tokens, parameters, passes, plan, optimizer, mean_loss, losses, norms })
    }

    /// Trains for `STEPS` steps, then reads the history back. Waits for the device every ten steps, to keep the
    /// progress bar accurate.
    fn run(
        &self,
        device: &Device,
        queue: &Queue,
        text: &Text,
        name: &str,
    ) -> Result<History, Box<dyn Error>> {
        let bar = ProgressBar::new(STEPS as u64);
        bar.set_style(ProgressStyle::with_template("{msg:16} {wide_bar} {pos}/{len} steps, {eta} left")?);
        bar.set_message(name.to_owned());
        let mut random = Random::new(SEED + 1);
        for step in 0..STEPS {
            queue.write_buffer(&self.tokens, 0, bytemuck::cast_slice(&text.batch(&mut random)));
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            self.encode_step(&mut encoder);
            self.encode_history(&mut encoder, step);
            queue.submit([encoder.finish()]);
            if step % 10 == 9 {
                device.poll(PollType::wait_indefinitely())?;
                bar.set_position(step as u64 + 1);
            }
        }
        bar.finish_and_clear();
        let losses = read(device, queue, &self.losses)?;
        Ok(History { losses, norms: read(device, queue, &self.norms)? })
    }

    /// Encodes copies of this step's loss and norm into the history buffers.
    fn encode_history(&self, encoder: &mut CommandEncoder, step: usize) {
        let offset = (step * size_of::<f32>()) as u64;
        encoder.copy_buffer_to_buffer(&self.mean_loss, 0, &self.losses, offset, 4);
        if let Some(record) = self.plan.as_ref().and_then(ClipPlan::record_buffer) {
            // `total_norm` is the first field of a record.
            encoder.copy_buffer_to_buffer(record, 0, &self.norms, offset, 4);
        }
    }

    /// Encodes forward pass, backward pass, clipping and optimizer.
    fn encode_step(&self, encoder: &mut CommandEncoder) {
        self.passes.iter().for_each(|pass| pass.encode(encoder));
        if let Some(plan) = &self.plan {
            plan.encode(encoder); // <-
        }
        self.optimizer.encode(encoder);
    }
}

/// Initialises the parameters: normal embedding and head, recurrent weight `GAIN` times the identity, zero biases.
fn initial_parameters(vocabulary: usize) -> Vec<f32> {
    let layout = ParameterLayout::new(vocabulary);
    let mut random = Random::new(SEED);
    let mut parameters = vec![0.0; layout.len];
    parameters[..layout.weight].fill_with(|| 0.5 * random.normal());
    for unit in 0..HIDDEN {
        parameters[layout.weight + unit * (HIDDEN + 1)] = GAIN;
    }
    let deviation = 1.0 / (HIDDEN as f32).sqrt();
    parameters[layout.head..layout.head_bias].fill_with(|| deviation * random.normal());
    parameters
}
