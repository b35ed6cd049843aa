//! `examples/optimizer/optimizers.rs`: optimizers that clip give the bits of clip-then-step, and the steps of `torch.optim`.

#[path = "../../examples/optimizer/optimizers.rs"]
mod module;

use gradclip::{Clip, ClipPlan, ClipRecord, DType, Gradient, NonFinite, wgpu};
use module::{Adam, Clipped, Optimizer, Sgd, Tensor};

use crate::common::numbers::{noise, rounded};
use crate::common::placement::{size, store};
use crate::gpu;

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

#[derive(Clone, Copy, Debug)]
enum Rule {
    Sgd(Sgd),
    Adam(Adam),
    AdamW(Adam),
}

impl Rule {
    fn all() -> [Self; 4] {
        let sgd = Sgd { learning_rate: 0.01, momentum: 0.9, weight_decay: 0.1, nesterov: false };
        let adam = Adam { learning_rate: 0.01, weight_decay: 0.1, ..Adam::default() };
        [Self::Sgd(sgd), Self::Sgd(Sgd { nesterov: true, ..sgd }), Self::Adam(adam), Self::AdamW(adam)]
    }

    fn optimizer(self, clipped: Clipped, tensors: &[Tensor]) -> Optimizer {
        let device = &gpu().device;
        match self {
            Self::Sgd(sgd) => Optimizer::sgd(device, clipped, tensors, sgd),
            Self::Adam(adam) => Optimizer::adam(device, clipped, tensors, adam),
            Self::AdamW(adam) => Optimizer::adamw(device, clipped, tensors, adam),
        }
    }
}

/// A tensor whose gradients are clipped before each step of its optimizer.
struct Training {
    dtype: DType,
    gradients: wgpu::Buffer,
    parameters: wgpu::Buffer,
    plan: ClipPlan,
    optimizer: Optimizer,
    /// Whether the optimizer reads the plan's record, and not one with the coefficient 1.
    is_fused: bool,
}

impl Training {
    fn new(rule: Rule, dtype: DType, parameters: &[f32], clip: Clip, is_fused: bool) -> Self {
        let gpu = gpu();
        let len = parameters.len();
        let gradients = gpu.writable((len * size(dtype)).div_ceil(2) as u64 * 4);
        let parameters = gpu.buffer(parameters);
        let clip = if is_fused { clip.coefficient_only() } else { clip };
        let gradient = Gradient::new(&gradients, dtype).elements(0..len as u64);
        let plan = gpu.clipper.prepare(&[gradient], clip).unwrap();
        let unclipped = gpu.buffer_of(&[ClipRecord::UNCLIPPED]);
        let mut clipped = Clipped::by(&plan).unwrap();
        if !is_fused {
            clipped.record = &unclipped;
        }
        let tensor = Tensor { parameters: &parameters, gradients: &gradients, dtype };
        let optimizer = rule.optimizer(clipped, &[tensor]);
        Self { dtype, gradients, parameters, plan, optimizer, is_fused }
    }

    /// Clips gradients and makes a step. The step after a scale pass does not see the record, so the host skips it.
    fn step(&self, gradients: &[f32], loss_scale: f32) -> ClipRecord {
        let gpu = gpu();
        let mut words = vec![0_u32; (gradients.len() * size(self.dtype)).div_ceil(2)];
        let units = gradients.len() * size(self.dtype);
        store(self.dtype, gradients, &mut bytemuck::cast_slice_mut(&mut words)[..units]);
        gpu.queue.write_buffer(&self.gradients, 0, bytemuck::cast_slice(&words));
        self.plan.set_loss_scale(&gpu.queue, loss_scale).unwrap();
        let record = gpu.record(&self.plan);
        if self.is_fused || !record.skip() {
            gpu.submit(|encoder| self.optimizer.encode(encoder));
        }
        record
    }

    /// Returns the bits of the parameters and of the state.
    fn bits(&self) -> [Vec<u32>; 2] {
        [&self.parameters, &self.optimizer.states()[0]].map(|buffer| gpu().read(buffer))
    }

    /// Returns the number of steps that were taken.
    fn taken(&self) -> u32 {
        let counts: Vec<u32> = gpu().read(self.optimizer.step_counts());
        counts[0] - counts[3]
    }
}

/// Returns gradients of all magnitudes below 1, and with the norm `norm`: many products with a factor are subnormal in f16, or
/// 0. The first one is the largest.
fn gradients(seed: u32, len: usize, norm: f32) -> Vec<f32> {
    let spread = |(x, i): (f32, u16)| x * 0.5_f32.powi(i32::from(i % 30));
    let mut gradients: Vec<_> = noise(seed, len).into_iter().zip(0..).map(spread).collect();
    gradients[0] = 1.0;
    let squares: f32 = gradients.iter().map(|x| x * x).sum();
    gradients.iter().map(|x| x * norm / squares.sqrt()).collect()
}

#[test]
fn an_optimizer_that_clips_gives_the_bits_of_clip_then_step() {
    let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Skip);
    for rule in Rule::all() {
        for dtype in DTYPES {
            for len in [1, 63, 1001] {
                let parameters = noise(1, len);
                let [fused, separate] =
                    [true, false].map(|is_fused| Training::new(rule, dtype, &parameters, clip, is_fused));
                let step = |norm: f32, loss_scale: f32| {
                    let gradients = gradients(fused.taken() + 2, len, norm * loss_scale);
                    let records = [&fused, &separate].map(|training| training.step(&gradients, loss_scale));
                    assert_eq!(records[0], records[1]);
                    assert_eq!(fused.bits(), separate.bits(), "{rule:?} {dtype} {len} {:?}", records[0]);
                    records[0]
                };
                // Within the limit and above it, without and with a loss scale.
                let before = fused.bits();
                assert_eq!(step(0.75, 1.0).factor, 1.0);
                assert_ne!(fused.bits(), before);
                assert!(step(3.0, 1.0).clipped());
                assert_eq!(step(0.75, 1024.0).factor, 1.0 / 1024.0);
                assert!(step(3.0, 1024.0).clipped());
                assert!(step(5000.0, 1.0).clipped());

                // A step that is skipped changes nothing.
                let (before, taken) = (fused.bits(), fused.taken());
                for poison in [f32::INFINITY, f32::NAN] {
                    let mut gradients = gradients(1, len, 1.0);
                    gradients[len / 2] = poison;
                    for training in [&fused, &separate] {
                        assert!(training.step(&gradients, 1.0).skip());
                        assert_eq!(training.bits(), before, "{rule:?} {dtype} {len}");
                        assert_eq!(training.taken(), taken);
                    }
                }
                assert!(step(2.0, 8.0).clipped());
                assert_eq!(fused.taken(), taken + 1);
                assert_eq!(taken, 5);
            }
        }
    }
}

#[test]
fn non_finite_gradients_give_the_bits_of_clip_then_step_under_every_policy() {
    for policy in [NonFinite::Zero, NonFinite::Propagate, NonFinite::Poison] {
        let clip = Clip::by_global_norm(1.0).non_finite(policy);
        for rule in Rule::all() {
            for dtype in DTYPES {
                let parameters = noise(1, 33);
                let [fused, separate] =
                    [true, false].map(|is_fused| Training::new(rule, dtype, &parameters, clip, is_fused));
                let finite = gradients(2, 33, 3.0);
                let mut infinite = finite.clone();
                infinite[7] = f32::NEG_INFINITY;
                for gradients in [&finite, &infinite, &finite] {
                    for training in [&fused, &separate] {
                        training.step(gradients, 2.0);
                    }
                    assert_eq!(fused.bits(), separate.bits(), "{policy:?} {rule:?} {dtype}");
                }
                assert_eq!(fused.taken(), 3);
            }
        }
    }
}

#[test]
fn no_step_is_taken_before_the_first_norm_pass() {
    for rule in Rule::all() {
        let training = Training::new(rule, DType::F32, &[1.0, 2.0], Clip::by_global_norm(1.0), true);
        let before = training.bits();
        gpu().submit(|encoder| training.optimizer.encode(encoder));
        assert_eq!(training.bits(), before, "{rule:?}");
        assert_eq!(training.taken(), 0);
    }
}

/// One parameter with its state, in f64: the formulas of `torch.optim`.
#[derive(Clone, Copy, Debug)]
struct Reference {
    parameter: f64,
    momentum: f64,
    moment1: f64,
    moment2: f64,
}

impl Reference {
    fn step(&mut self, rule: Rule, gradient: f64, step: i32) {
        match rule {
            Rule::Sgd(Sgd { learning_rate, momentum, weight_decay, nesterov }) => {
                let gradient = gradient + weight_decay * self.parameter;
                self.momentum = momentum * self.momentum + gradient;
                let direction = if nesterov { gradient + momentum * self.momentum } else { self.momentum };
                self.parameter -= learning_rate * direction;
            }
            Rule::Adam(adam) => {
                let gradient = gradient + adam.weight_decay * self.parameter;
                self.adam_step(adam, gradient, step);
            }
            Rule::AdamW(adam) => {
                self.parameter *= 1.0 - adam.learning_rate * adam.weight_decay;
                self.adam_step(adam, gradient, step);
            }
        }
    }

    fn adam_step(&mut self, adam: Adam, gradient: f64, step: i32) {
        let [beta1, beta2] = adam.betas;
        self.moment1 += (1.0 - beta1) * (gradient - self.moment1);
        self.moment2 = beta2 * self.moment2 + (1.0 - beta2) * gradient * gradient;
        let step_size = adam.learning_rate / (1.0 - beta1.powi(step));
        let denominator = (self.moment2 / (1.0 - beta2.powi(step))).sqrt() + adam.epsilon;
        self.parameter -= step_size * self.moment1 / denominator;
    }
}

/// Steps 7 and 8 of 22 are skipped: they must not count in the bias correction.
#[test]
fn twenty_steps_are_those_of_torch() {
    /// Parameters are below 2, so this is a few units in the last place.
    const TOLERANCE: f64 = 1e-6;

    let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Skip);
    for rule in Rule::all() {
        for dtype in DTYPES {
            let parameters = noise(1, 101);
            let training = Training::new(rule, dtype, &parameters, clip, true);
            let start = |&parameter: &f32| Reference {
                parameter: parameter.into(),
                momentum: 0.0,
                moment1: 0.0,
                moment2: 0.0,
            };
            let mut references: Vec<_> = parameters.iter().map(start).collect();
            let mut taken = 0;
            for step in 1..=22 {
                let mut gradients = noise(step + 1, 101);
                if [7, 8].contains(&step) {
                    gradients[100] = f32::NAN;
                }
                let record = training.step(&gradients, 16.0);
                assert_eq!(record.skip(), [7, 8].contains(&step));
                if record.skip() {
                    continue;
                }
                taken += 1;
                for (reference, &gradient) in references.iter_mut().zip(&gradients) {
                    let clipped = rounded(dtype, rounded(dtype, gradient) * record.factor);
                    reference.step(rule, clipped.into(), taken);
                }
            }
            assert_eq!(taken, 20);
            let found: Vec<f32> = gpu().read(&training.parameters);
            let errors =
                found.iter().zip(&references).map(|(&p, reference)| f64::from(p) - reference.parameter);
            let largest = errors.fold(0.0, |largest: f64, error| largest.max(error.abs()));
            println!("{rule:?} {dtype} {largest:e}");
            assert!(largest <= TOLERANCE, "{rule:?} {dtype}: off by {largest:e}");
            assert_ne!(found, parameters);
        }
    }
}
