//! Times the clip of one step in Burn, for the gradients of a transformer with 150 tensors and 10 million parameters:
//! gradclip-burn, the same clip in several variants of Burn's tensor operations, and Burn's clip of each tensor by its
//! own norm.
//!
//! The methods take turns. Each starts from fresh, fully computed gradients and is timed up to a device sync. The first
//! turn is not timed; it checks each clip by global norm against f64. `cargo bench` prints medians and the ratios
//! within the run; `RUNS` sets the number of turns.

use std::time::{Duration, Instant};

use burn::Tensor;
use burn::grad_clipping::GradientClipping;
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::Device;
use gradclip_burn::GradClipper;

const MAX_NORM: f32 = 1.0;

#[derive(Module, Debug)]
struct Transformer {
    matrices: Vec<Param<Tensor<2>>>,
    vectors: Vec<Param<Tensor<1>>>,
}

impl Transformer {
    /// Creates parameters with the shapes of 12 layers of width 256 and of an embedding.
    fn new(device: &Device) -> Self {
        let mut matrices = vec![[2048, 256], [128, 256]];
        let mut vectors = vec![256; 4];
        for _ in 0..12 {
            matrices.extend([[256, 768], [256, 256], [256, 1024], [1024, 256]]);
            vectors.extend([768, 256, 1024, 256, 256, 256, 256, 256]);
        }
        Self {
            matrices: matrices
                .into_iter()
                .map(|shape| Param::from_tensor(Tensor::zeros(shape, device)))
                .collect(),
            vectors: vectors
                .into_iter()
                .map(|length| Param::from_tensor(Tensor::zeros([length], device)))
                .collect(),
        }
    }

    fn gradients(&self) -> GradientsParams {
        let mut grads = GradientsParams::new();
        for (index, matrix) in self.matrices.iter().enumerate() {
            grads.register(matrix.id, matrix.val() + 0.001 * (index as f32 + 1.0));
        }
        for (index, vector) in self.vectors.iter().enumerate() {
            grads.register(vector.id, vector.val() + 0.002 * (index as f32 + 1.0));
        }
        grads
    }

    fn norm(&self, grads: &GradientsParams) -> f64 {
        let mut sum = 0.0;
        let mut add = |values: Vec<f32>| sum += values.into_iter().map(|x| f64::from(x).powi(2)).sum::<f64>();
        for matrix in &self.matrices {
            add(grads.get::<2>(matrix.id).expect("a gradient").into_data().try_to_vec().expect("f32"));
        }
        for vector in &self.vectors {
            add(grads.get::<1>(vector.id).expect("a gradient").into_data().try_to_vec().expect("f32"));
        }
        sum.sqrt()
    }

    /// Replaces each gradient.
    fn map_gradients(
        &self,
        grads: &mut GradientsParams,
        matrix: impl Fn(Tensor<2>) -> Tensor<2>,
        vector: impl Fn(Tensor<1>) -> Tensor<1>,
    ) {
        for parameter in &self.matrices {
            let gradient = grads.remove(parameter.id).expect("a gradient");
            grads.register(parameter.id, matrix(gradient));
        }
        for parameter in &self.vectors {
            let gradient = grads.remove(parameter.id).expect("a gradient");
            grads.register(parameter.id, vector(gradient));
        }
    }

    fn squares(&self, grads: &GradientsParams) -> Vec<Tensor<1>> {
        let matrices = self.matrices.iter().map(|p| grads.get::<2>(p.id).expect("a gradient").square().sum());
        let vectors = self.vectors.iter().map(|p| grads.get::<1>(p.id).expect("a gradient").square().sum());
        matrices.chain(vectors).collect()
    }

    fn scale_lazily(&self, grads: &mut GradientsParams, norm: Tensor<1>) {
        let coef = (norm + 1e-6).recip().mul_scalar(MAX_NORM).clamp_max(1.0);
        self.map_gradients(grads, |g| g * coef.clone().unsqueeze(), |g| g * coef.clone());
    }
}

/// A method: its name, its code, and whether it clips by global norm.
type Method<'a> = (&'a str, &'a dyn Fn(&mut GradientsParams), bool);

fn main() {
    let device = Device::default();
    let model = Transformer::new(&device);
    let tensors = model.matrices.len() + model.vectors.len();
    println!("{tensors} tensors, {} parameters", model.num_params());
    let clipper = GradClipper::by_global_norm(MAX_NORM).expect("a limit");
    let per_tensor = GradientClipping::Norm(MAX_NORM);
    let global = |grads: &mut GradientsParams| drop(clipper.clip(grads, &model).expect("a clip"));
    let cat = |grads: &mut GradientsParams| {
        let norm = Tensor::cat(model.squares(grads), 0).sum().sqrt();
        model.scale_lazily(grads, norm);
    };
    let chain = |grads: &mut GradientsParams| {
        let norm = model.squares(grads).into_iter().reduce(|a, b| a + b).expect("gradients").sqrt();
        model.scale_lazily(grads, norm);
    };
    let read_back = |grads: &mut GradientsParams| {
        let norm = Tensor::cat(model.squares(grads), 0).sum().sqrt().into_scalar::<f32>();
        let coef = (MAX_NORM / (norm + 1e-6)).min(1.0);
        model.map_gradients(grads, |g| g * coef, |g| g * coef);
    };
    let by_tensor = |grads: &mut GradientsParams| {
        model.map_gradients(grads, |g| per_tensor.clip_gradient(g), |g| per_tensor.clip_gradient(g));
    };
    let methods: [Method<'_>; 5] = [
        ("gradclip-burn", &global, true),
        ("tensor operations, cat", &cat, true),
        ("tensor operations, chain of +", &chain, true),
        ("tensor operations, norm read back", &read_back, true),
        ("Burn's GradientClipping::Norm", &by_tensor, false),
    ];

    // `cargo test` checks the methods and does not time them.
    let timed = std::env::args().any(|argument| argument == "--bench");
    let runs =
        std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(15) * usize::from(timed);
    let mut times = vec![Vec::<Duration>::new(); methods.len()];
    for run in 0..=runs {
        for ((name, method, is_global), times) in methods.iter().zip(&mut times) {
            let mut grads = model.gradients();
            device.sync().expect("a device");
            let start = Instant::now();
            method(&mut grads);
            device.sync().expect("a device");
            // The first run compiles and autotunes kernels. It is checked, not timed.
            if run > 0 {
                times.push(start.elapsed());
            } else if *is_global {
                let norm = model.norm(&grads);
                assert!(
                    (norm - f64::from(MAX_NORM)).abs() < 1e-4,
                    "{name}: the norm is {norm} after clipping"
                );
            }
        }
    }
    if !timed {
        return;
    }
    let mut medians = Vec::new();
    for ((name, ..), times) in methods.iter().zip(&mut times) {
        times.sort_unstable();
        let median = times[times.len() / 2];
        println!("{name:36} median {median:8.1?}, least {:8.1?}", times[0]);
        medians.push(median.as_secs_f64());
    }
    let best = medians[1..4].iter().copied().fold(f64::INFINITY, f64::min);
    println!("best form in tensor operations / gradclip-burn = {:.2}", best / medians[0]);
    println!("Burn's GradientClipping::Norm / gradclip-burn = {:.2}", medians[4] / medians[0]);
}
