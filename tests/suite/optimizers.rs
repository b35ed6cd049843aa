//! `examples/optimizer/optimizers.rs`: optimizers that clip give the bits of clip-then-step, and the steps of `torch.optim`.

#[path = "../../examples/optimizer/optimizers.rs"]
mod module;

use gradclip::stats::StepCounts;
use gradclip::{Clip, ClipPlan, ClipRecord, DType, Gradient, NonFinite, wgpu};
use module::{Adam, Clipped, Optimizer, Sgd, Tensor};

use crate::common::gpu::Gpu;
use crate::common::numbers::{noise, rounded};
use crate::common::placement::{size, store};
use crate::{assert_near, gpu, gpu_with};

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

    fn optimizer(self, device: &wgpu::Device, clipped: Clipped, tensors: &[Tensor]) -> Optimizer {
        match self {
            Self::Sgd(sgd) => Optimizer::sgd(device, clipped, tensors, sgd),
            Self::Adam(adam) => Optimizer::adam(device, clipped, tensors, adam),
            Self::AdamW(adam) => Optimizer::adamw(device, clipped, tensors, adam),
        }
    }
}

/// Tensors whose gradients are clipped together before each step of their optimizer.
struct Training<'a> {
    gpu: &'a Gpu,
    dtypes: Vec<DType>,
    gradients: Vec<wgpu::Buffer>,
    parameters: Vec<wgpu::Buffer>,
    plan: ClipPlan,
    optimizer: Optimizer,
    /// Whether the optimizer reads the plan's record, and not one with the coefficient 1.
    is_fused: bool,
}

impl<'a> Training<'a> {
    fn new(
        gpu: &'a Gpu,
        rule: Rule,
        dtypes: &[DType],
        parameters: &[Vec<f32>],
        clip: Clip,
        is_fused: bool,
    ) -> Self {
        let both = || dtypes.iter().zip(parameters);
        let words = |(dtype, parameters): (&DType, &Vec<f32>)| (parameters.len() * size(*dtype)).div_ceil(2);
        let gradients: Vec<_> = both().map(|both| gpu.writable(4 * words(both) as u64)).collect();
        let clip = if is_fused { clip.coefficient_only() } else { clip }.count_steps();
        let list = gradients.iter().zip(both()).map(|(buffer, (&dtype, parameters))| {
            Gradient::new(buffer, dtype).elements(0..parameters.len() as u64)
        });
        let plan = gpu.clipper.prepare(&list.collect::<Vec<_>>(), clip).unwrap();
        let unclipped = gpu.buffer_of(&[ClipRecord::UNCLIPPED]);
        let mut clipped = Clipped::by(&plan).unwrap();
        if !is_fused {
            clipped.record = &unclipped;
        }
        let parameters: Vec<_> = parameters.iter().map(|parameters| gpu.buffer(parameters)).collect();
        let tensor = |((parameters, gradients), &dtype)| Tensor { parameters, gradients, dtype };
        let tensors: Vec<_> = parameters.iter().zip(&gradients).zip(dtypes).map(tensor).collect();
        let optimizer = rule.optimizer(&gpu.device, clipped, &tensors);
        Self { gpu, dtypes: dtypes.to_vec(), gradients, parameters, plan, optimizer, is_fused }
    }

    /// The optimizer that clips, and the one after a scale pass.
    fn both_ways(
        gpu: &'a Gpu,
        rule: Rule,
        dtypes: &[DType],
        parameters: &[Vec<f32>],
        clip: Clip,
    ) -> [Self; 2] {
        [true, false].map(|is_fused| Self::new(gpu, rule, dtypes, parameters, clip, is_fused))
    }

    /// Clips gradients and makes a step. The step after a scale pass does not see the record, so the host skips it.
    fn step(&self, gradients: &[Vec<f32>], loss_scale: f32) -> ClipRecord {
        for ((buffer, &dtype), gradients) in self.gradients.iter().zip(&self.dtypes).zip(gradients) {
            let units = gradients.len() * size(dtype);
            let mut words = vec![0_u32; units.div_ceil(2)];
            store(dtype, gradients, &mut bytemuck::cast_slice_mut(&mut words)[..units]);
            self.gpu.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&words));
        }
        self.plan.set_loss_scale(&self.gpu.queue, loss_scale).unwrap();
        let record = self.gpu.record(&self.plan);
        if self.is_fused || !record.skip() {
            self.gpu.submit(|encoder| self.optimizer.encode(encoder));
        }
        record
    }

    /// Returns the bits of the parameters and of the state of each tensor.
    fn bits(&self) -> Vec<Vec<u32>> {
        self.parameters.iter().chain(self.optimizer.states()).map(|buffer| self.gpu.read(buffer)).collect()
    }

    /// Returns the number of steps that were taken.
    fn taken(&self) -> u32 {
        let ticket = self.gpu.submit(|encoder| self.plan.read_back_step_counts(encoder));
        ticket.wait().unwrap()[0].taken()
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
    let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Skip).skip_above(1e4);
    for rule in Rule::all() {
        for dtype in DTYPES {
            for len in [1, 63, 1001] {
                let [fused, separate] = Training::both_ways(gpu(), rule, &[dtype], &[noise(1, len)], clip);
                let step = |norm: f32, loss_scale: f32| {
                    let gradients = [gradients(fused.taken() + 2, len, norm * loss_scale)];
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
                let with = |element: f32| {
                    let mut gradients = gradients(1, len, 1.0);
                    gradients[len / 2] = element;
                    gradients
                };
                for gradients in [[with(f32::INFINITY)], [with(f32::NAN)], [gradients(1, len, 2e4)]] {
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
                let [fused, separate] = Training::both_ways(gpu(), rule, &[dtype], &[noise(1, 33)], clip);
                let finite = gradients(2, 33, 3.0);
                let mut infinite = finite.clone();
                infinite[7] = f32::NEG_INFINITY;
                for gradients in [&finite, &infinite, &finite] {
                    for training in [&fused, &separate] {
                        training.step(std::slice::from_ref(gradients), 2.0);
                    }
                    assert_eq!(fused.bits(), separate.bits(), "{policy:?} {rule:?} {dtype}");
                }
                assert_eq!(fused.taken(), 3);
            }
        }
    }
}

/// Four tensors of three types, and a large one whose dispatch has fewer invocations than parameters.
#[test]
fn tensors_of_several_types_share_a_step() {
    let gpu = gpu_with(|limits| limits.max_compute_workgroups_per_dimension = 256);
    let lens = [5, 40_000, 33, 7];
    let dtypes = [DType::F16, DType::F32, DType::BF16, DType::F16];
    let all = |seed| lens.iter().zip(seed..).map(|(&len, seed)| noise(seed, len)).collect::<Vec<_>>();
    for rule in Rule::all() {
        let clip = Clip::by_global_norm(1.0);
        let [fused, separate] = Training::both_ways(&gpu, rule, &dtypes, &all(1), clip);
        let start = fused.bits();
        for seed in [5, 9] {
            let [fused, separate] = [&fused, &separate].map(|training| training.step(&all(seed), 1.0));
            assert_eq!(fused, separate);
            assert!(fused.clipped());
        }
        let end = fused.bits();
        assert_eq!(end, separate.bits(), "{rule:?}");
        assert!(
            start.iter().flatten().zip(end.iter().flatten()).all(|(start, end)| start != end),
            "{rule:?}"
        );
    }
}

/// The bias corrections are accurate at the first step and after 2^32 - 1 steps.
#[test]
fn the_bias_correction_is_accurate_after_any_number_of_steps() {
    let gpu = gpu();
    let adam = Adam { learning_rate: 1.0, ..Adam::default() };
    let gradients = gpu.buffer(&[1.0]);
    let record = gpu.buffer_of(&[ClipRecord::UNCLIPPED]);
    for taken in [1, 2, 3, 7, 10, 1000, 9999, 1_000_000, u32::MAX] {
        let counts = gpu.buffer_of(&[StepCounts { steps: taken, ..StepCounts::default() }]);
        let parameters = gpu.buffer(&[0.0]);
        let tensor = Tensor { parameters: &parameters, gradients: &gradients, dtype: DType::F32 };
        let clipped = Clipped { record: &record, step_counts: &counts };
        let optimizer = Optimizer::adam(&gpu.device, clipped, &[tensor], adam);
        gpu.submit(|encoder| optimizer.encode(encoder));

        let [correction1, correction2] = adam.betas.map(|beta| 1.0 - beta.powf(taken.into()));
        let direction = 0.1 / correction1 / ((0.001 / correction2).sqrt() + adam.epsilon);
        assert_near(gpu.read::<f32>(&parameters)[0], -direction);
    }
}

/// The factor is below the normal range of f32, and the products are not.
#[test]
fn an_optimizer_applies_factors_below_f32() {
    let clip = Clip::by_global_norm(0.001);
    for rule in Rule::all() {
        for dtype in [DType::F32, DType::BF16] {
            let [fused, separate] = Training::both_ways(gpu(), rule, &[dtype], &[noise(1, 33)], clip);
            let gradients = [noise(2, 33).iter().map(|x| 1e37 * x).collect()];
            let [record, _] = [&fused, &separate].map(|training| training.step(&gradients, 1.0));
            assert!(record.factor > 0.0 && record.factor < f32::MIN_POSITIVE);
            assert_eq!(fused.bits(), separate.bits(), "{rule:?} {dtype}");
            let state: Vec<f32> = gpu().read(&fused.optimizer.states()[0]);
            assert!(state.iter().all(|state| *state != 0.0), "{rule:?} {dtype}");
        }
    }
}

#[test]
fn the_learning_rate_can_change() {
    let gpu = gpu();
    let clip = Clip::by_global_norm(2.0);
    let sgd = Rule::Sgd(Sgd { learning_rate: 0.5, ..Sgd::default() });
    let training = Training::new(gpu, sgd, &[DType::F32], &[vec![2.0]], clip, true);
    training.step(&[vec![1.0]], 1.0);
    assert_eq!(gpu.read::<f32>(&training.parameters[0]), [1.5]);
    training.optimizer.set_learning_rate(&gpu.queue, 0.25);
    training.step(&[vec![1.0]], 1.0);
    assert_eq!(gpu.read::<f32>(&training.parameters[0]), [1.25]);
}

#[test]
fn no_step_is_taken_before_the_first_norm_pass() {
    for rule in Rule::all() {
        let clip = Clip::by_global_norm(1.0);
        let training = Training::new(gpu(), rule, &[DType::F32], &[vec![1.0, 2.0]], clip, true);
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
            let training =
                Training::new(gpu(), rule, &[dtype], std::slice::from_ref(&parameters), clip, true);
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
                let record = training.step(std::slice::from_ref(&gradients), 16.0);
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
            let found: Vec<f32> = gpu().read(&training.parameters[0]);
            for ((&parameter, reference), start) in found.iter().zip(&references).zip(&parameters) {
                let error = (f64::from(parameter) - reference.parameter).abs();
                assert!(error <= TOLERANCE, "{rule:?} {dtype}: {parameter}, not {}", reference.parameter);
                assert_ne!(parameter, *start);
            }
        }
    }
}
