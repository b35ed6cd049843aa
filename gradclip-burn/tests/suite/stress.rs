//! Hundreds of clips without a sync.

use burn::Tensor;
use burn::module::Param;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use gradclip::reference;
use gradclip_burn::Clip;

use crate::{Model, clipper, noise, values, vector};

/// Gradients are computed lazily just before a clip and used lazily just after it. Nothing is read back until the end.
/// The reference computes the same steps in f64 on the host.
#[test]
fn hundreds_of_clips_without_a_sync() {
    const STEPS: usize = 300;
    let device = Device::default();
    let lengths = [4096, 33, 1000];
    let seeds: Vec<_> = lengths.iter().zip(1..).map(|(&length, seed)| noise(length, seed)).collect();
    let bases: Vec<_> = seeds.iter().map(|seed| vector(seed, &device)).collect();
    let model = Model {
        weights: Vec::new(),
        biases: lengths.iter().map(|&length| Param::from_tensor(Tensor::zeros([length], &device))).collect(),
    };
    let clipper = clipper(Clip::by_global_norm(1.0));
    let mut sums: Vec<_> = lengths.iter().map(|&length| Tensor::<1>::zeros([length], &device)).collect();
    let mut expected: Vec<Vec<f64>> = lengths.iter().map(|&length| vec![0.0; length]).collect();
    let mut norms = Vec::new();
    let mut expected_norms = Vec::new();
    let base_norm = reference::total_norm(&seeds.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for step in 0..STEPS {
        // Every fifth step is within the limit.
        let scale = if step % 5 == 0 { 0.001 } else { 0.1 * (step % 17 + 1) as f32 };
        let mut grads = GradientsParams::new();
        for (bias, base) in model.biases.iter().zip(&bases) {
            grads.register(bias.id, base.clone() * scale);
        }
        norms.push(clipper.clip(&mut grads, &model).unwrap().norm());
        for (bias, sum) in model.biases.iter().zip(&mut sums) {
            *sum = sum.clone() + grads.remove::<1>(bias.id).unwrap();
        }
        let norm = base_norm * f64::from(scale);
        expected_norms.push(norm);
        let factor = f64::from(scale) * reference::clip_coef(norm, 1.0);
        for (sum, seed) in expected.iter_mut().zip(&seeds) {
            for (sum, &element) in sum.iter_mut().zip(seed) {
                *sum += f64::from(element) * factor;
            }
        }
    }
    let mut worst_norm = 0.0_f64;
    for (norm, expected) in values(Tensor::cat(norms, 0)).into_iter().zip(expected_norms) {
        worst_norm = worst_norm.max((f64::from(norm) / expected - 1.0).abs());
    }
    let mut worst = 0.0_f64;
    for (sum, expected) in sums.into_iter().zip(expected) {
        for (sum, expected) in values(sum).into_iter().zip(expected) {
            worst = worst.max((f64::from(sum) / expected - 1.0).abs());
        }
    }
    println!(
        "{STEPS} clips: worst relative error of a norm {worst_norm:.1e}, of a sum of clipped gradients {worst:.1e}"
    );
    assert!(worst_norm < 5e-7, "a norm is off by {worst_norm:e}");
    // The sum adds up to 300 rounding errors.
    assert!(worst < 1e-5, "a sum of clipped gradients is off by {worst:e}");
}
