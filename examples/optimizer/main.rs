//! Clipping without a scale pass: `cargo run --example optimizer`
//!
//! An optimizer reads every gradient anyway. If it multiplies by the clip coefficient there, the pass that would read
//! and write them all is saved: [`Clip::coefficient_only`], and a shader that binds [`ClipPlan::record_buffer`].
//! AdamW trains in both ways, on the same problem; the parameters must come out the same.

use std::error::Error;

use gradclip::{CLIP_RECORD_WGSL, Clip, ClipPlan, ClipRecord, Clipper, Gradient};

#[path = "../common/mod.rs"]
mod common;
use common::{Kernel, read, storage};

const ELEMENTS: u16 = 50_000;
const STEPS: u8 = 20;
const MAX_NORM: f32 = 60.0;
/// What the ways may differ by: the bits are the same here, but WGSL lets a compiler reorder a product.
const TOLERANCE: f32 = 1e-6;

fn main() -> Result<(), Box<dyn Error>> {
    let (device, queue) = common::open();
    let fused = Training::with_clip_in_optimizer(&device)?;
    let apart = Training::with_clip_before_optimizer(&device)?;

    println!("step   norm (in AdamW)  norm (scale pass)  coefficient");
    for step in 1..=STEPS {
        let in_adamw = fused.step(&device, &queue, step)?;
        let scaled = apart.step(&device, &queue, step)?;
        let (norm, other) = (in_adamw.total_norm, scaled.total_norm);
        println!("{step:4}  {norm:16.6}  {other:17.6}  {:11.6}", scaled.clip_coef);
    }

    let fused = read(&device, &queue, &fused.parameters)?;
    let apart = read(&device, &queue, &apart.parameters)?;
    let mut differences = fused.iter().zip(&apart).map(|(a, b)| (a - b).abs());
    let largest = differences.clone().fold(0.0, f32::max);
    let verdict = if fused == apart { "the same, bit for bit" } else { "not the same" };
    println!("largest difference of the {ELEMENTS} parameters: {largest:e} ({verdict})");
    // Each of them, because the largest would overlook a NaN.
    if !differences.all(|difference| difference <= TOLERANCE) {
        return Err(format!("the parameters must not differ by more than {TOLERANCE:e}").into());
    }
    Ok(())
}

/// Parameters on their way to random targets.
struct Training {
    parameters: wgpu::Buffer,
    hyperparameters: wgpu::Buffer,
    backward: Kernel,
    plan: ClipPlan,
    adamw: Kernel,
}

impl Training {
    fn with_clip_in_optimizer(device: &wgpu::Device) -> Result<Self, Box<dyn Error>> {
        let clip = Clip::by_global_norm(MAX_NORM).coefficient_only();
        Self::new(device, clip, |plan| plan.record_buffer().cloned())
    }

    /// For the same optimizer, which finds a factor of 1 in a record of its own.
    fn with_clip_before_optimizer(device: &wgpu::Device) -> Result<Self, Box<dyn Error>> {
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

    /// One step; the record is waited for only because it is to be printed.
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

/// `Hyperparameters` of adamw.wgsl. What Adam divides by for its moments' start from zero depends on the step.
fn hyperparameters(step: u8) -> [f32; 7] {
    let (learning_rate, epsilon, weight_decay) = (0.05, 1e-8, 0.01);
    let (beta1, beta2) = (0.9_f32, 0.999_f32);
    let correction = |beta: f32| 1.0 - beta.powi(step.into());
    [learning_rate, beta1, beta2, epsilon, weight_decay, correction(beta1), correction(beta2)]
}

/// Numbers between -1 and 1 in no order: the golden ratio, wrapped around.
fn targets() -> Vec<f32> {
    let golden = 0.618_034;
    (0..ELEMENTS).map(|i| 2.0 * (f32::from(i) * golden).fract() - 1.0).collect()
}
