//! Clips inside the optimizer, without a scale pass: `cargo run --example optimizer`
//!
//! An optimizer reads every gradient anyway. If it also multiplies by the clip coefficient, the pass that scales the
//! gradients in memory is not needed. The plan needs [`Clip::coefficient_only`], and the optimizer reads
//! [`ClipPlan::record_buffer`]. The module `optimizers` has such optimizers, to copy. The example trains the same problem
//! with and without the scale pass, with SGD, Adam and AdamW, and checks that the parameters are bit-identical.

use std::error::Error;

use gradclip::{Clip, ClipPlan, ClipRecord, Clipper, DType, Gradient};

#[path = "../common/mod.rs"]
mod common;
mod optimizers;

use common::{Kernel, read, storage};
use optimizers::{Adam, Clipped, Optimizer, Sgd, Tensor};

const ELEMENTS: u16 = 50_000;
const STEPS: usize = 20;
const MAX_NORM: f32 = 60.0;

#[derive(Clone, Copy, Debug)]
enum Rule {
    Sgd(Sgd),
    Adam(Adam),
    AdamW(Adam),
}

fn main() -> Result<(), Box<dyn Error>> {
    let (device, queue) = common::open();
    let adam = Adam { learning_rate: 0.05, weight_decay: 0.01, ..Adam::default() };
    let sgd = Sgd { learning_rate: 0.05, momentum: 0.9, ..Sgd::default() };
    for (name, rule) in [("SGD", Rule::Sgd(sgd)), ("Adam", Rule::Adam(adam)), ("AdamW", Rule::AdamW(adam))] {
        let fused = Training::with_fused_clip(&device, rule)?;
        let separate = Training::with_scale_pass(&device, rule)?;
        println!("\n{name}: step  norm (in the optimizer)  norm (scale pass)  coefficient");
        for step in 1..=STEPS {
            let [a, b] = [fused.step(&device, &queue)?, separate.step(&device, &queue)?];
            if step % 5 == 0 {
                println!("{step:11}  {:23.6}  {:17.6}  {:11.6}", a.total_norm, b.total_norm, b.clip_coef);
            }
        }
        let [a, b] =
            [read(&device, &queue, &fused.parameters)?, read(&device, &queue, &separate.parameters)?];
        let different = a.iter().zip(&b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        if different > 0 {
            return Err(format!("{name}: {different} of {ELEMENTS} parameters have other bits").into());
        }
        println!("{ELEMENTS} parameters are bit-identical");
    }
    Ok(())
}

/// Fits parameters to fixed targets.
struct Training {
    parameters: wgpu::Buffer,
    backward: Kernel,
    plan: ClipPlan,
    optimizer: Optimizer,
}

impl Training {
    /// The optimizer multiplies by the coefficient in the plan's record.
    fn with_fused_clip(device: &wgpu::Device, rule: Rule) -> Result<Self, Box<dyn Error>> {
        Self::new(device, rule, clip().coefficient_only(), None)
    }

    /// The plan scales the gradients. The optimizer is the same, and reads a constant record with the coefficient 1.
    fn with_scale_pass(device: &wgpu::Device, rule: Rule) -> Result<Self, Box<dyn Error>> {
        Self::new(device, rule, clip(), Some(ClipRecord::UNCLIPPED))
    }

    fn new(
        device: &wgpu::Device,
        rule: Rule,
        clip: Clip,
        record: Option<ClipRecord>,
    ) -> Result<Self, Box<dyn Error>> {
        let zeros = vec![0.0; ELEMENTS.into()];
        let targets = storage(device, "targets", &targets());
        let parameters = storage(device, "parameters", &zeros);
        let gradients = storage(device, "gradients", &zeros);
        let plan = Clipper::new(device)?.prepare(&[Gradient::f32(&gradients)], clip)?;
        let backward = Kernel::new(
            device,
            include_str!("backward.wgsl"),
            &[&targets, &parameters, &gradients],
            ELEMENTS.into(),
        );

        let record = record.map(|record| storage(device, "record", bytemuck::cast_slice(&[record])));
        let mut clipped = Clipped::by(&plan).ok_or("the clip counts steps")?;
        clipped.record = record.as_ref().unwrap_or(clipped.record);
        let tensors = [Tensor { parameters: &parameters, gradients: &gradients, dtype: DType::F32 }];
        let optimizer = match rule {
            Rule::Sgd(sgd) => Optimizer::sgd(device, clipped, &tensors, sgd),
            Rule::Adam(adam) => Optimizer::adam(device, clipped, &tensors, adam),
            Rule::AdamW(adam) => Optimizer::adamw(device, clipped, &tensors, adam),
        };
        Ok(Self { parameters, backward, plan, optimizer })
    }

    /// Runs one step and waits for its record, to print it. A real training loop would not wait.
    fn step(&self, device: &wgpu::Device, queue: &wgpu::Queue) -> Result<ClipRecord, gradclip::Error> {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.backward.encode(&mut encoder);
        self.plan.encode(&mut encoder);
        self.optimizer.encode(&mut encoder);
        let ticket = self.plan.read_back(&mut encoder);
        queue.submit([encoder.finish()]);
        ticket.wait()
    }
}

/// Adam's bias correction takes the number of steps from the plan.
fn clip() -> Clip {
    Clip::by_global_norm(MAX_NORM).count_steps()
}

/// Returns values in [-1, 1): multiples of the golden ratio, modulo 1, which spread evenly.
fn targets() -> Vec<f32> {
    const GOLDEN_RATIO: f32 = 0.618_034;
    (0..ELEMENTS).map(|i| 2.0 * (f32::from(i) * GOLDEN_RATIO).fract() - 1.0).collect()
}
