//! Why gradients are clipped: `cargo run --release --example char_rnn -- --plot char_rnn.svg`
//!
//! A recurrent network learns to write, character by character, what three old poems say. All of it is written on wgpu
//! directly: forward, back through time, clip, AdamW. It has rectified units and begins with a multiple of the identity
//! (Le, Jaitly and Hinton 2015, arXiv:1504.00941), a little too large, so that gradients explode on their way back through
//! time (Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063). It trains twice, from the same numbers: with clipping it
//! learns; without, its first steps throw it far away, their gradients stay in the moments of AdamW, and it ends
//! worse than one who guesses.
//!
//! The clip is two lines: one that plans it, one that encodes it. The optimizer reads the coefficient from the device.

use std::env;
use std::error::Error;
use std::time::{Duration, Instant};

use gradclip::{CLIP_RECORD_WGSL, Clip, ClipPlan, Clipper, Gradient};
use indicatif::{ProgressBar, ProgressStyle};
use wgpu::{Device, PollType, Queue};

#[path = "../common/mod.rs"]
mod common;
mod plot;
mod text;

use common::{Kernel, read, storage};
use text::{Random, Text};

/// An invocation each, in a workgroup of that size.
const HIDDEN: usize = 64;
/// The characters that a sequence is read through, and back.
const LENGTH: usize = 48;
/// The sequences of a step.
const BATCH: usize = 8;
const STEPS: usize = 300;
const LEARNING_RATE: f32 = 0.01;
const MAX_NORM: f32 = 1.0;
/// What the recurrent weight begins with, times the identity. Over 48 characters that is a factor of 294 632.
const GAIN: f32 = 1.3;
const SEED: u64 = 7;

/// What a training was like, step by step.
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
    let (device, queue) = common::open();
    let text = Text::read();
    println!("{} characters, {} of them different", text.tokens.len(), text.characters.len());

    let clipped = Training::new(&device, &text, Clip::by_global_norm(MAX_NORM))?;
    let with = clipped.run(&device, &queue, &text, "with clipping")?;
    let share = clipped.time_share(&device, &queue)?;
    let written = text.continued(&read(&device, &queue, &clipped.parameters)?, "so long lives ", 160);
    // Measured only: the coefficient is 1, whatever the norm.
    let unclipped = Training::new(&device, &text, Clip::by_global_norm(f32::INFINITY))?;
    let without = unclipped.run(&device, &queue, &text, "without")?;

    println!("        with clipping              without");
    println!("step      loss          norm       loss          norm");
    for step in (0..STEPS).step_by(20).chain([STEPS - 1]) {
        let [a, b] = [&with, &without];
        println!(
            "{step:4}  {:8.3}  {:12.4e}  {:9.3}  {:12.4e}",
            a.losses[step], a.norms[step], b.losses[step], b.norms[step]
        );
    }
    println!("\nguessing has a loss of {:.3}", text.guessing());
    println!("clipping takes {:.1} % of a step (on the wall clock, each part waited for)", 100.0 * share);
    println!("\nwith clipping it writes: {written}");
    if let Some(file) = plot {
        plot::save(file.as_ref(), &[("with clipping", &with), ("without", &without)], text.guessing())?;
        println!("\nthe picture is in {file}");
    }
    let [with, without] = [&with, &without].map(|history| *history.losses.last().unwrap_or(&f32::NAN));
    let has_learned = with < 0.6 * text.guessing();
    let has_diverged = without.is_nan() || without > text.guessing();
    if has_learned && has_diverged {
        Ok(())
    } else {
        Err(format!("losses of {with} and {without} tell no story").into())
    }
}

/// Where each parameter begins in the arena of all, and where the last one ends.
struct Places {
    weight: usize,
    bias: usize,
    head: usize,
    head_bias: usize,
    end: usize,
}

impl Places {
    fn new(vocabulary: usize) -> Self {
        let weight = vocabulary * HIDDEN;
        let bias = weight + HIDDEN * HIDDEN;
        let head = bias + HIDDEN;
        let head_bias = head + vocabulary * HIDDEN;
        Self { weight, bias, head, head_bias, end: head_bias + vocabulary }
    }

    /// As elements of the arena: embedding, weight, bias, head, bias of the head.
    fn ranges(&self) -> [std::ops::Range<u64>; 5] {
        let ends = [0, self.weight, self.bias, self.head, self.head_bias, self.end].map(|end| end as u64);
        [0, 1, 2, 3, 4].map(|tensor| ends[tensor]..ends[tensor + 1])
    }

    /// What the shaders must know.
    fn wgsl(&self, vocabulary: usize) -> String {
        let Self { weight, bias, head, head_bias, .. } = self;
        format!(
            "const HIDDEN = {HIDDEN}u;\nconst LENGTH = {LENGTH}u;\nconst BATCH = {BATCH}u;\n\
             const VOCABULARY = {vocabulary}u;\nconst EMBEDDING = 0u;\nconst WEIGHT = {weight}u;\n\
             const BIAS = {bias}u;\nconst HEAD = {head}u;\nconst HEAD_BIAS = {head_bias}u;\n"
        )
    }
}

/// The network on the device, and what trains it.
struct Training {
    tokens: wgpu::Buffer,
    hyperparameters: wgpu::Buffer,
    parameters: wgpu::Buffer,
    /// Forward and back.
    passes: Vec<Kernel>,
    plan: ClipPlan,
    adamw: Kernel,
    mean_loss: wgpu::Buffer,
    losses: wgpu::Buffer,
    norms: wgpu::Buffer,
}

impl Training {
    fn new(device: &Device, text: &Text, clip: Clip) -> Result<Self, Box<dyn Error>> {
        let vocabulary = text.characters.len();
        let places = Places::new(vocabulary);
        let zeros = |label, len| storage(device, label, &vec![0.0; len]);
        let tokens = zeros("tokens", BATCH * (LENGTH + 1));
        let parameters = storage(device, "parameters", &initial(vocabulary));
        let states = zeros("states", (LENGTH + 1) * BATCH * HIDDEN);
        let logit_grads = zeros("logit_grads", LENGTH * BATCH * vocabulary);
        let input_grads = zeros("input_grads", LENGTH * BATCH * HIDDEN);
        let gradients = zeros("gradients", places.end);
        let moments = zeros("moments", 2 * places.end);
        let hyperparameters = storage(device, "hyperparameters", &hyperparameters(1));
        let (losses, mean_loss) = (zeros("losses", LENGTH * BATCH), zeros("mean_loss", 1));

        // The first of the two lines.
        let plan = Clipper::new(device)?.prepare(&places.gradients(&gradients), clip.coefficient_only())?;

        let record = plan.record_buffer().ok_or("a clip by global norm has a record")?;
        let kernel = |wgsl: &str, buffers: &[&wgpu::Buffer], invocations: usize| {
            let wgsl = [&places.wgsl(vocabulary), wgsl].concat();
            Kernel::new(device, &wgsl, buffers, u32::try_from(invocations).expect("a small network"))
        };
        let passes = vec![
            kernel(include_str!("forward.wgsl"), &[&tokens, &parameters, &states], BATCH * HIDDEN),
            kernel(
                include_str!("output.wgsl"),
                &[&tokens, &parameters, &states, &logit_grads, &losses],
                LENGTH * BATCH,
            ),
            kernel(include_str!("mean.wgsl"), &[&losses, &mean_loss], 1),
            kernel(
                include_str!("backward.wgsl"),
                &[&parameters, &states, &logit_grads, &input_grads],
                BATCH * HIDDEN,
            ),
            kernel(
                include_str!("gradients.wgsl"),
                &[&tokens, &states, &logit_grads, &input_grads, &gradients],
                places.end,
            ),
        ];
        let adamw = Kernel::new(
            device,
            &[CLIP_RECORD_WGSL, include_str!("../optimizer/adamw.wgsl")].concat(),
            &[record, &hyperparameters, &gradients, &moments, &parameters],
            u32::try_from(places.end)?,
        );
        let [losses, norms] = ["losses of all steps", "norms of all steps"].map(|label| zeros(label, STEPS));
        Ok(Self { tokens, hyperparameters, parameters, passes, plan, adamw, mean_loss, losses, norms })
    }

    /// Trains. Nothing is read back before the end; the host only waits now and then, so that the bar tells the truth.
    fn run(
        &self,
        device: &Device,
        queue: &Queue,
        text: &Text,
        name: &str,
    ) -> Result<History, Box<dyn Error>> {
        let bar = ProgressBar::new(STEPS as u64);
        bar.set_style(ProgressStyle::with_template("{msg:14} {wide_bar} {pos}/{len} steps, {eta} left")?);
        bar.set_message(name.to_owned());
        let mut random = Random::new(SEED + 1);
        for step in 0..STEPS {
            queue.write_buffer(&self.tokens, 0, bytemuck::cast_slice(&text.batch(&mut random)));
            let hyperparameters = hyperparameters(step + 1);
            queue.write_buffer(&self.hyperparameters, 0, bytemuck::cast_slice(&hyperparameters));
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            self.passes.iter().for_each(|pass| pass.encode(&mut encoder));
            // The second.
            self.plan.encode(&mut encoder);
            self.adamw.encode(&mut encoder);
            self.keep(&mut encoder, step);
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

    /// Copies what is to be known of a step to where that of all steps is.
    fn keep(&self, encoder: &mut wgpu::CommandEncoder, step: usize) {
        let at = (step * size_of::<f32>()) as u64;
        encoder.copy_buffer_to_buffer(&self.mean_loss, 0, &self.losses, at, 4);
        if let Some(record) = self.plan.record_buffer() {
            // The total norm is the first number of a record.
            encoder.copy_buffer_to_buffer(record, 0, &self.norms, at, 4);
        }
    }

    /// What part of a step clipping takes: medians, waited for, on the data of the last step.
    fn time_share(&self, device: &Device, queue: &Queue) -> Result<f64, Box<dyn Error>> {
        let timed = |record: &dyn Fn(&mut wgpu::CommandEncoder)| -> Result<Duration, Box<dyn Error>> {
            let start = Instant::now();
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            record(&mut encoder);
            queue.submit([encoder.finish()]);
            device.poll(PollType::wait_indefinitely())?;
            Ok(start.elapsed())
        };
        let (mut others, mut clips) = (Vec::new(), Vec::new());
        for _ in 0..15 {
            others.push(timed(&|encoder| self.passes.iter().for_each(|pass| pass.encode(encoder)))?);
            clips.push(timed(&|encoder| self.plan.encode(encoder))?);
        }
        let [other, clip] = [others, clips].map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64()
        });
        Ok(clip / (clip + other))
    }
}

impl Places {
    fn gradients<'a>(&self, arena: &'a wgpu::Buffer) -> Vec<Gradient<'a>> {
        self.ranges().map(|range| Gradient::f32(arena).elements(range)).to_vec()
    }
}

/// Small random numbers; the recurrent weight is a multiple of the identity, and the biases are 0.
fn initial(vocabulary: usize) -> Vec<f32> {
    let places = Places::new(vocabulary);
    let mut random = Random::new(SEED);
    let mut parameters = vec![0.0; places.end];
    parameters[..places.weight].fill_with(|| 0.5 * random.normal());
    for unit in 0..HIDDEN {
        parameters[places.weight + unit * (HIDDEN + 1)] = GAIN;
    }
    let spread = 1.0 / (HIDDEN as f32).sqrt();
    parameters[places.head..places.head_bias].fill_with(|| spread * random.normal());
    parameters
}

/// `Hyperparameters` of adamw.wgsl.
fn hyperparameters(step: usize) -> [f32; 7] {
    let (epsilon, weight_decay) = (1e-8, 0.01);
    let (beta1, beta2) = (0.9_f32, 0.999_f32);
    let correction = |beta: f32| 1.0 - beta.powf(step as f32);
    [LEARNING_RATE, beta1, beta2, epsilon, weight_decay, correction(beta1), correction(beta2)]
}
