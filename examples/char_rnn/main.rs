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
//! Clipping adds two lines, marked `// <-`: a plan, and a call in every step. The optimizer reads the coefficient on
//! the device and applies it, so no pass writes the gradients to clip them. The example shows which share of a step
//! clipping takes this way, and with a scale pass.

use std::env;
use std::error::Error;
use std::ops::Range;

use gradclip::{Clip, ClipPlan, ClipRecord, Clipper, DType, Gradient};
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
use timing::Timer;

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

/// Where the gradients are multiplied by the coefficient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Apply {
    /// In a pass that reads and writes all gradients, before the optimizer.
    InScalePass,
    /// In the optimizer, as it reads each gradient.
    InOptimizer,
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
    let share = |apply| {
        let training = Training::new(&device, &text, Clip::by_global_norm(MAX_NORM), apply)?;
        training.clip_time_share(&queue, &text, &timer)
    };
    let shares = [
        ("scaled in a pass", share(Apply::InScalePass)?),
        ("scaled in the optimizer", share(Apply::InOptimizer)?),
    ];

    let clipped = Training::new(&device, &text, Clip::by_global_norm(MAX_NORM), Apply::InOptimizer)?;
    let with = clipped.run(&device, &queue, &text, "with clipping")?;
    let sample = text.sample(&read(&device, &queue, &clipped.parameters)?, "so long lives ", 160);
    // An infinite limit only measures: the coefficient is always 1.
    let unlimited = Clip::by_global_norm(f32::INFINITY);
    let unclipped = Training::new(&device, &text, unlimited, Apply::InOptimizer)?;
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
    println!("clipping's share of a step ({}, parts timed one by one):", timer.clock());
    for (name, share) in shares {
        println!("{name:>25}: {:.2} %", 100.0 * share);
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

    /// Returns one gradient for each tensor: embedding, weight, bias, head, head bias.
    fn gradients<'a>(&self, buffer: &'a wgpu::Buffer) -> Vec<Gradient<'a>> {
        let offsets = [0, self.weight, self.bias, self.head, self.head_bias, self.len].map(|n| n as u64);
        offsets.windows(2).map(|w| Gradient::f32(buffer).elements(w[0]..w[1])).collect()
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
    plan: ClipPlan,
    optimizer: Optimizer,
    mean_loss: wgpu::Buffer,
    losses: wgpu::Buffer,
    norms: wgpu::Buffer,
}

impl Training {
    fn new(device: &Device, text: &Text, clip: Clip, apply: Apply) -> Result<Self, Box<dyn Error>> {
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
        let gradients_of = |range: Range<usize>| {
            let bounds = format!("const FIRST = {}u;\nconst END = {}u;\n", range.start, range.end);
            let buffers = [&tokens, &states, &logit_grads, &input_grads, &gradients];
            kernel(&[&bounds, include_str!("gradients.wgsl")].concat(), &buffers, range.len())
        };
        let passes = vec![
            kernel(include_str!("forward.wgsl"), &[&tokens, &parameters, &states], BATCH * HIDDEN),
            kernel(
                include_str!("output.wgsl"),
                &[&tokens, &parameters, &states, &logit_grads, &losses],
                LENGTH * BATCH,
            ),
            kernel(include_str!("mean.wgsl"), &[&losses, &mean_loss], 1),
            gradients_of(layout.head..layout.len),
            kernel(
                include_str!("backward.wgsl"),
                &[&parameters, &states, &logit_grads, &input_grads],
                BATCH * HIDDEN,
            ),
            gradients_of(0..layout.head),
        ];

        let clip = if apply == Apply::InOptimizer { clip.coefficient_only() } else { clip }.count_steps();
        let plan = Clipper::new(device)?.prepare(&layout.gradients(&gradients), clip)?; // <-
        let unclipped = storage(device, "record", bytemuck::cast_slice(&[ClipRecord::UNCLIPPED]));
        let mut clipped = Clipped::by(&plan).ok_or("the clip counts steps")?;
        if apply == Apply::InScalePass {
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
            self.encode_passes(&mut encoder);
            self.plan.encode(&mut encoder); // <-
            self.optimizer.encode(&mut encoder);
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
        if let Some(record) = self.plan.record_buffer() {
            // `total_norm` is the first field of a record.
            encoder.copy_buffer_to_buffer(record, 0, &self.norms, offset, 4);
        }
    }

    fn encode_passes(&self, encoder: &mut CommandEncoder) {
        self.passes.iter().for_each(|pass| pass.encode(encoder));
    }

    /// Returns the share of a step's time that clipping takes. It trains a few steps with one batch; their norms exceed
    /// the limit.
    fn clip_time_share(&self, queue: &Queue, text: &Text, timer: &Timer) -> Result<f64, Box<dyn Error>> {
        queue.write_buffer(&self.tokens, 0, bytemuck::cast_slice(&text.batch(&mut Random::new(SEED + 1))));
        let passes = |encoder: &mut CommandEncoder| self.encode_passes(encoder);
        let clip = |encoder: &mut CommandEncoder| self.plan.encode(encoder);
        let optimizer = |encoder: &mut CommandEncoder| self.optimizer.encode(encoder);
        let [passes, clip, optimizer] = timer.medians([&passes, &clip, &optimizer])?;
        Ok(clip / (passes + clip + optimizer))
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
