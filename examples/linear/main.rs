//! The textbook case, all on the GPU and in one submission: `cargo run --example linear`
//!
//! y = W·x + b with two inputs and one output, two samples, mean squared error. From W = [0.5, -0.25] and b = 0 the
//! residuals are -1 and 3, the loss is 5, and the gradient is [80, 100] for W and 2 for b: a norm of 128, which a
//! learning rate of 0.01 survives only if it is clipped. All figures are checked against f64 on the host.

use std::error::Error;

use gradclip::{Clip, Clipper, Gradient, reference};

#[path = "../common/mod.rs"]
mod common;
use common::{Kernel, read, storage};

const INPUTS: [[f32; 2]; 2] = [[10.0, 20.0], [30.0, 40.0]];
const TARGETS: [f32; 2] = [1.0, 2.0];
const WEIGHT: [f32; 2] = [0.5, -0.25];
const BIAS: f32 = 0.0;
const MAX_NORM: f32 = 1.0;
const LEARNING_RATE: f32 = 0.01;
const TOLERANCE: f64 = 1e-6;

fn main() -> Result<(), Box<dyn Error>> {
    let found = on_the_gpu()?;
    let (expected, unclipped) = on_the_host();
    let names = ["loss", "norm before clipping", "norm after clipping", "loss after the step"];

    println!("{:22}{:>10}{:>12}", "", "GPU", "f64");
    for ((name, found), expected) in names.iter().zip(found).zip(expected) {
        println!("{name:22}{found:10.6}{expected:12.6}");
    }
    println!("without clipping, the loss after the step would be {unclipped:.1}");

    let close = |(found, expected): (f32, f64)| (f64::from(found) / expected - 1.0).abs() < TOLERANCE;
    if found.into_iter().zip(expected).all(close) {
        Ok(())
    } else {
        Err(format!("the figures must agree to {TOLERANCE:e}").into())
    }
}

/// The loss, the norm of the gradient before and after clipping, and the loss after the step.
fn on_the_gpu() -> Result<[f32; 4], Box<dyn Error>> {
    let (device, queue) = common::open();
    let buffer = |label, floats: &[f32]| storage(&device, label, floats);
    let kernel = |wgsl, buffers: &[_], invocations| Kernel::new(&device, wgsl, buffers, invocations);

    let inputs = buffer("inputs", INPUTS.as_flattened());
    let targets = buffer("targets", &TARGETS);
    let (weight, bias) = (buffer("weight", &WEIGHT), buffer("bias", &[BIAS]));
    let (weight_grad, bias_grad) = (buffer("weight_grad", &[0.0; 2]), buffer("bias_grad", &[0.0]));
    let (loss, new_loss) = (buffer("loss", &[0.0]), buffer("new_loss", &[0.0]));
    let residuals = buffer("residuals", &[0.0; 2]);
    let learning_rate = buffer("learning_rate", &[LEARNING_RATE]);

    let forward = |loss| {
        let buffers = [&inputs, &targets, &weight, &bias, &residuals, loss];
        kernel(include_str!("forward.wgsl"), &buffers, 1)
    };
    let backward = [&inputs, &residuals, &weight_grad, &bias_grad];
    let backward = kernel(include_str!("backward.wgsl"), &backward, 1);
    let descend = |parameter, gradient, elements| {
        let buffers = [&learning_rate, gradient, parameter];
        kernel(include_str!("sgd.wgsl"), &buffers, elements)
    };
    // One coefficient for both: clipped apart from each other, they would point elsewhere.
    let gradients = [&weight_grad, &bias_grad].map(Gradient::f32);
    let plan = Clipper::new(&device)?.prepare(&gradients, Clip::by_global_norm(MAX_NORM))?;

    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    forward(&loss).encode(&mut encoder);
    backward.encode(&mut encoder);
    plan.encode(&mut encoder);
    let before = plan.read_back(&mut encoder);
    // Only to show that it is 1 now; training needs no second look.
    plan.encode_norm(&mut encoder);
    let after = plan.read_back(&mut encoder);
    descend(&weight, &weight_grad, 2).encode(&mut encoder);
    descend(&bias, &bias_grad, 1).encode(&mut encoder);
    forward(&new_loss).encode(&mut encoder);
    queue.submit([encoder.finish()]);

    let first = |buffer| read(&device, &queue, buffer).map(|floats| floats[0]);
    let norms = [before.wait()?.total_norm, after.wait()?.total_norm];
    Ok([first(&loss)?, norms[0], norms[1], first(&new_loss)?])
}

/// The same four figures, and the loss after a step that does not clip.
fn on_the_host() -> ([f64; 4], f64) {
    let layer = Layer([WEIGHT[0], WEIGHT[1], BIAS].map(f64::from));
    let gradient = layer.gradient();
    let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
    let coef = reference::clip_coef(norm, MAX_NORM.into());
    let clipped = layer.descended(&gradient.map(|g| g * coef));
    let figures = [layer.loss(), norm, norm * coef, clipped.loss()];
    (figures, layer.descended(&gradient).loss())
}

/// The two weights and the bias.
struct Layer([f64; 3]);

impl Layer {
    /// Every sample, with a 1 for the bias, and its residual.
    fn residuals(&self) -> [([f64; 3], f64); 2] {
        [0, 1].map(|i| {
            let x = [INPUTS[i][0], INPUTS[i][1], 1.0].map(f64::from);
            let y: f64 = self.0.iter().zip(x).map(|(w, x)| w * x).sum();
            (x, y - f64::from(TARGETS[i]))
        })
    }

    fn loss(&self) -> f64 {
        self.residuals().map(|(_, residual)| residual * residual).iter().sum::<f64>() / 2.0
    }

    fn gradient(&self) -> [f64; 3] {
        let samples = self.residuals();
        // The 2 of the derivative and the mean over two samples cancel.
        [0, 1, 2].map(|k| samples.iter().map(|(x, residual)| residual * x[k]).sum())
    }

    fn descended(&self, gradient: &[f64; 3]) -> Self {
        Self([0, 1, 2].map(|k| self.0[k] - f64::from(LEARNING_RATE) * gradient[k]))
    }
}
