//! The tests of the package. Where possible, each runs on Burn's wgpu runtime and on its CPU backend.

mod auto_clip;
mod columns;
mod devices_and_threads;
mod errors;
#[cfg(feature = "train")]
mod learner;
mod loss_scale;
mod memory;
mod modules;
mod numerics;
mod optimizer;
mod options;
mod parameter_norm;
mod per_gradient;
mod state;
mod stress;

use burn::Tensor;
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::Device;
use gradclip::reference;
use gradclip_burn::{Clip, GradClipper};

/// Returns the devices of the tests: the kernels clip on the first, tensor operations on the second.
fn devices() -> [Device; 2] {
    [Device::default(), Device::flex()]
}

/// A model with parameters of two ranks. Their values are not used.
#[derive(Module, Debug)]
struct Model {
    weights: Vec<Param<Tensor<2>>>,
    biases: Vec<Param<Tensor<1>>>,
}

impl Model {
    fn new(weights: &[[usize; 2]], biases: &[usize], device: &Device) -> Self {
        Self {
            weights: weights.iter().map(|&shape| Param::from_tensor(Tensor::zeros(shape, device))).collect(),
            biases: biases
                .iter()
                .map(|&length| Param::from_tensor(Tensor::zeros([length], device)))
                .collect(),
        }
    }

    /// Creates a model of biases, and a container with their gradients.
    fn with_gradients(gradients: Vec<Tensor<1>>) -> (Self, GradientsParams) {
        let mut grads = GradientsParams::new();
        let biases = gradients.into_iter().map(|gradient| {
            let parameter = Param::from_tensor(Tensor::zeros([1], &gradient.device()));
            grads.register(parameter.id, gradient);
            parameter
        });
        let biases = biases.collect();
        (Self { weights: Vec::new(), biases }, grads)
    }

    /// Reads back the gradients of the biases.
    fn biases_of(&self, grads: &GradientsParams) -> Vec<Vec<f32>> {
        self.biases.iter().map(|bias| values(grads.get::<1>(bias.id).expect("a gradient"))).collect()
    }

    /// Reads back all gradients, in the order of the module.
    fn gradients(&self, grads: &GradientsParams) -> Vec<Vec<f32>> {
        let weights =
            self.weights.iter().map(|weight| values(grads.get::<2>(weight.id).expect("a gradient")));
        weights.chain(self.biases_of(grads)).collect()
    }
}

fn clipper(clip: Clip) -> GradClipper {
    GradClipper::new(clip).expect("valid options")
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_to_vec().expect("f32")
}

fn vector(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(values, device)
}

/// Returns pseudorandom numbers between -1 and 1.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0
    };
    #[expect(clippy::cast_possible_truncation, reason = "any f32 will do")]
    (0..count).map(|_| next() as f32).collect()
}

/// Returns the joint norm, in f64.
fn norm_of(gradients: &[Vec<f32>]) -> f64 {
    let slices: Vec<&[f32]> = gradients.iter().map(Vec::as_slice).collect();
    reference::total_norm(&slices)
}

/// Asserts that `after` is `before` scaled to the limit, and that `norm` is the norm of `before`.
fn assert_clipped(before: &[Vec<f32>], after: &[Vec<f32>], norm: Tensor<1>, max_norm: f64) {
    let expected = norm_of(before);
    let device = norm.device();
    let found = f64::from(values(norm)[0]);
    // Burn's CPU backend sums in f32, element by element.
    let tolerance = if device == Device::default() { 3e-7 } else { 1e-5 };
    assert!(
        (found - expected).abs() <= tolerance * expected,
        "the norm is {expected}, not {found}, on {device:?}"
    );
    let coef = reference::clip_coef(expected, max_norm);
    assert_eq!(before.len(), after.len());
    for (index, (before, after)) in before.iter().zip(after).enumerate() {
        assert_eq!(before.len(), after.len());
        for (element, (&before, &after)) in before.iter().zip(after).enumerate() {
            let expected = f64::from(before) * coef;
            assert!(
                (f64::from(after) - expected).abs() <= (2e-7 + tolerance) * expected.abs(),
                "gradient {index}, element {element}: {after}, not {expected} = {before} · {coef}"
            );
        }
    }
}
