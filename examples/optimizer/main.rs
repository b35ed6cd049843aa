//! Clips inside the optimizer, without a scale pass: `cargo run --example optimizer`
//!
//! An optimizer reads every gradient anyway. If it also multiplies by the clip coefficient, the pass that scales the
//! gradients in memory is not needed. This takes [`Clip::coefficient_only`], and an optimizer shader that binds
//! [`ClipPlan::record_buffer`]. The example trains the same problem with and without the scale pass, and compares the
//! parameters.

use std::error::Error;

use gradclip::{CLIP_RECORD_WGSL, Clip, ClipPlan, ClipRecord, Clipper, Gradient};

#[path = "../common/mod.rs"]
mod common;
use common::{Kernel, read, storage};

const ELEMENTS: u16 = 50_000;
const STEPS: u8 = 20;
const MAX_NORM: f32 = 60.0;
/// The largest difference allowed between the two. WGSL lets a compiler reorder products, so bits may differ.
const TOLERANCE: f32 = 1e-6;

fn main() -> Result<(), Box<dyn Error>> {
    let (device, queue) = common::open();
    let fused = Training::with_fused_clip(&device)?;
    let separate = Training::with_scale_pass(&device)?;

    println!("step   norm (in AdamW)  norm (scale pass)  coefficient");
    for step in 1..=STEPS {
        let fused = fused.step(&device, &queue, step)?;
        let separate = separate.step(&device, &queue, step)?;
        println!(
            "{step:4}  {:16.6}  {:17.6}  {:11.6}",
            fused.total_norm, separate.total_norm, separate.clip_coef
        );
    }

    let fused = read(&device, &queue, &fused.parameters)?;
    let separate = read(&device, &queue, &separate.parameters)?;
    let mut differences = fused.iter().zip(&separate).map(|(a, b)| (a - b).abs());
    let largest = differences.clone().fold(0.0, f32::max);
    let verdict = if fused == separate { "bit-identical" } else { "not bit-identical" };
    println!("largest difference over {ELEMENTS} parameters: {largest:e} ({verdict})");
    // Checks every element, because `f32::max` ignores NaN.
    if !differences.all(|difference| difference <= TOLERANCE) {
        return Err(format!("the parameters must not differ by more than {TOLERANCE:e}").into());
    }
    Ok(())
}

/// Fits parameters to fixed targets.
struct Training {
    parameters: wgpu::Buffer,
    hyperparameters: wgpu::Buffer,
    backward: Kernel,
    plan: ClipPlan,
    adamw: Kernel,
}

impl Training {
    /// AdamW multiplies by the coefficient in the plan's record.
    fn with_fused_clip(device: &wgpu::Device) -> Result<Self, Box<dyn Error>> {
        let clip = Clip::by_global_norm(MAX_NORM).coefficient_only();
        Self::new(device, clip, |plan| plan.record_buffer().cloned())
    }

    /// The plan scales the gradients. AdamW is the same, and reads a constant record with the coefficient 1.
    fn with_scale_pass(device: &wgpu::Device) -> Result<Self, Box<dyn Error>> {
        let unclipped = [ClipRecord::UNCLIPPED];
        let clip = Clip::by_global_norm(MAX_NORM);
        Self::new(device, clip, |_| Some(storage(device, "record", bytemuck::cast_slice(&unclipped))))
    }

    fn new(
        device: &wgpu::Device,
        clip: Clip,
        record: impl Fn(&ClipPlan) -> Option<wgpu::Buffer>,
    ) -> Result<Self, Box<dyn Error>> {
        let zeros = vec![0.0; 2 * usize::from(ELEMENTS)];
        let targets = storage(device, "targets", &targets());
        let parameters = storage(device, "parameters", &zeros[..ELEMENTS.into()]);
        let gradients = storage(device, "gradients", &zeros[..ELEMENTS.into()]);
        let moments = storage(device, "moments", &zeros);
        let hyperparameters = storage(device, "hyperparameters", &hyperparameters(1));

        let plan = Clipper::new(device)?.prepare(&[Gradient::f32(&gradients)], clip)?;
        let record = record(&plan).ok_or("a clip by global norm has a record")?;
        let backward = Kernel::new(
            device,
            include_str!("backward.wgsl"),
            &[&targets, &parameters, &gradients],
            ELEMENTS.into(),
        );
        let adamw = Kernel::new(
            device,
            &[CLIP_RECORD_WGSL, include_str!("adamw.wgsl")].concat(),
            &[&record, &hyperparameters, &gradients, &moments, &parameters],
            ELEMENTS.into(),
        );
        Ok(Self { parameters, hyperparameters, backward, plan, adamw })
    }

    /// Runs one step and waits for its record, to print it. A real training loop would not wait.
    fn step(
        &self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        step: u8,
    ) -> Result<ClipRecord, gradclip::Error> {
        let floats = hyperparameters(step);
        queue.write_buffer(&self.hyperparameters, 0, bytemuck::cast_slice(&floats));
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.backward.encode(&mut encoder);
        self.plan.encode(&mut encoder);
        self.adamw.encode(&mut encoder);
        let ticket = self.plan.read_back(&mut encoder);
        queue.submit([encoder.finish()]);
        ticket.wait()
    }
}

/// Returns the `Hyperparameters` of adamw.wgsl. The bias corrections depend on the step, counted from 1.
fn hyperparameters(step: u8) -> [f32; 7] {
    let (learning_rate, epsilon, weight_decay) = (0.05, 1e-8, 0.01);
    let (beta1, beta2) = (0.9_f32, 0.999_f32);
    let correction = |beta: f32| 1.0 - beta.powi(step.into());
    [learning_rate, beta1, beta2, epsilon, weight_decay, correction(beta1), correction(beta2)]
}

/// Returns values in [-1, 1): multiples of the golden ratio, modulo 1, which spread evenly.
fn targets() -> Vec<f32> {
    const GOLDEN_RATIO: f32 = 0.618_034;
    (0..ELEMENTS).map(|i| 2.0 * (f32::from(i) * GOLDEN_RATIO).fract() - 1.0).collect()
}
