//! Stage `z_clip`: limits that follow the norms of past steps.

use gradclip::stats::{NormHistory, StepCounts};
use gradclip::{Clip, ClipPlan, ClipRecord, DType, Epsilon, Gradient, NonFinite, NormType, ZClip, cpu, wgpu};
use serde_json::Value;

use crate::common::gpu::Gpu;
use crate::gpu;

/// A sequence of norms, with the expected limits and histories.
struct Sequence {
    name: String,
    z_clip: ZClip,
    norms: Vec<f32>,
    limits: Vec<f32>,
    histories: Vec<(f32, f32)>,
}

/// Reads the sequences of `tests/fixtures/peers.json`, which a Python script computes from the formulas of the paper.
fn sequences() -> Vec<Sequence> {
    let peers: Value = serde_json::from_str(include_str!("../../fixtures/peers.json")).unwrap();
    let decimal = |value: &Value| value.as_str().unwrap().parse().unwrap();
    let numbers = |value: &Value| -> Vec<f32> {
        let bits = |value: &Value| u32::from_str_radix(value.as_str().unwrap(), 16).unwrap();
        value.as_array().unwrap().iter().map(|number| f32::from_bits(bits(number))).collect()
    };
    // The paper adds 1e-6 to the deviation; this crate does not. Sequences that depend on it are skipped.
    let sequences =
        peers["zclip"].as_array().unwrap().iter().filter(|sequence| sequence["eps_matters"] == false);
    let sequence = |sequence: &Value| Sequence {
        name: sequence["name"].as_str().unwrap().to_owned(),
        z_clip: ZClip {
            alpha: decimal(&sequence["alpha"]),
            z_threshold: decimal(&sequence["z_thresh"]),
            warm_up: u32::try_from(sequence["warm_up"].as_u64().unwrap()).unwrap(),
        },
        norms: numbers(&sequence["norms"]),
        limits: numbers(&sequence["limits"]),
        histories: numbers(&sequence["means"]).into_iter().zip(numbers(&sequence["stds"])).collect(),
    };
    let sequences: Vec<_> = sequences.map(sequence).collect();
    assert!(sequences.len() >= 10);
    sequences
}

fn is_near(x: f32, expected: f32, scale: f32) -> bool {
    x == expected || (x - expected).abs() <= 1e-5 * expected.abs() + 1e-6 * scale
}

/// A plan that clips a gradient of one element at every step.
trait Steps {
    /// Clips, and returns the record and the history after the step.
    fn step(&mut self, gradient: f32) -> (ClipRecord, NormHistory);
}

impl Steps for cpu::ClipPlan {
    fn step(&mut self, gradient: f32) -> (ClipRecord, NormHistory) {
        let records = self.clip(&mut [cpu::Gradient::f32(&mut [gradient])]).unwrap();
        (records[0], self.histories()[0])
    }
}

struct OnGpu {
    gpu: &'static Gpu,
    plan: ClipPlan,
    gradient: wgpu::Buffer,
}

impl OnGpu {
    fn new(clip: Clip) -> Self {
        let gpu = gpu();
        let gradient = gpu.writable(4);
        let plan = gpu.clipper.prepare(&[Gradient::new(&gradient, DType::F32)], clip).unwrap();
        Self { gpu, plan, gradient }
    }
}

impl Steps for OnGpu {
    fn step(&mut self, gradient: f32) -> (ClipRecord, NormHistory) {
        self.gpu.queue.write_buffer(&self.gradient, 0, bytemuck::bytes_of(&gradient));
        let (record, histories) = self.gpu.submit(|encoder| {
            self.plan.encode(encoder);
            (self.plan.read_back(encoder), self.plan.read_back_histories(encoder))
        });
        (record.wait().unwrap(), histories.wait().unwrap()[0])
    }
}

fn check(sequence: &Sequence, steps: &mut dyn Steps) {
    let Sequence { name, z_clip, norms, limits, histories } = sequence;
    for (step, &norm) in norms.iter().enumerate() {
        let (record, history) = steps.step(norm);
        assert_eq!(record.total_norm, norm, "{name}, step {step}");
        let expected = if limits[step].is_finite() { limits[step] / norm } else { 1.0 };
        let coef = record.clip_coef;
        assert!(is_near(coef, expected, 1.0), "{name}, step {step}: {coef}, not {expected}");
        assert_eq!(history.steps, z_clip.warm_up.min(u32::try_from(step).unwrap() + 1));
        let (mean, deviation) = histories[step];
        assert!(
            is_near(history.mean, mean, 0.0) && is_near(history.deviation, deviation, mean),
            "{name}, step {step}: {history:?}, not {mean} and {deviation}"
        );
    }
}

fn clip(z_clip: ZClip) -> Clip {
    Clip::by_global_norm(f32::INFINITY).epsilon(Epsilon::None).z_clip(z_clip)
}

#[test]
fn limits_follow_past_norms_as_the_paper_says() {
    for sequence in sequences() {
        check(&sequence, &mut cpu::ClipPlan::new(&[clip(sequence.z_clip)]).unwrap());
        check(&sequence, &mut OnGpu::new(clip(sequence.z_clip)));
    }
}

#[test]
fn a_history_is_restored_in_a_new_plan_and_on_the_other_path() {
    let sequence = &sequences()[0];
    let mut on_gpu = OnGpu::new(clip(sequence.z_clip));
    let mut on_cpu = cpu::ClipPlan::new(&[clip(sequence.z_clip)]).unwrap();
    let mut uninterrupted = OnGpu::new(clip(sequence.z_clip));
    let mut history = NormHistory::default();
    for (step, &norm) in sequence.norms.iter().enumerate() {
        // Every few steps a new plan continues, as after a change of buffers. Every few steps the other path continues.
        if step % 7 == 3 {
            on_gpu = OnGpu::new(clip(sequence.z_clip));
            on_gpu.plan.set_histories(&on_gpu.gpu.queue, &[history]).unwrap();
            history = on_gpu.step(norm).1;
        } else if step % 7 == 5 {
            on_cpu.set_histories(&[history]).unwrap();
            history = on_cpu.step(norm).1;
        } else {
            on_gpu.plan.set_histories(&on_gpu.gpu.queue, &[history]).unwrap();
            history = on_gpu.step(norm).1;
        }
        let (_, expected) = uninterrupted.step(norm);
        assert_eq!(history.steps, expected.steps);
        assert!(is_near(history.mean, expected.mean, 0.0), "step {step}: {history:?}, not {expected:?}");
        assert!(is_near(history.deviation, expected.deviation, expected.mean), "step {step}");
    }
}

#[test]
fn the_smaller_limit_holds_and_non_finite_steps_leave_no_history() {
    let z_clip = ZClip { warm_up: 3, ..ZClip::default() };
    let clip = Clip::by_global_norm(1.5).z_clip(z_clip).non_finite(NonFinite::Skip).count_steps();
    let (mut on_gpu, mut on_cpu) = (OnGpu::new(clip), cpu::ClipPlan::new(&[clip]).unwrap());
    let numbers = [1.0, 1.2, 0.8, f32::NAN, 1.0, f32::INFINITY, 9.0, 1.6, 1.0];
    let steps: [&mut dyn Steps; 2] = [&mut on_gpu, &mut on_cpu];
    for steps in steps {
        let mut before = NormHistory::default();
        for number in numbers {
            let (record, history) = steps.step(number);
            assert_eq!(record.skip(), !number.is_finite());
            assert_eq!(history == before, !number.is_finite(), "{number}");
            if number == 9.0 {
                // The mean is about 1.
                assert!(record.clip_coef < 1.2 / 9.0, "the history limits this step, not 1.5: {record:?}");
            }
            assert!(!record.clipped() || number.is_nan() || number > 1.2, "{record:?}");
            before = history;
        }
    }
    let counts = on_gpu.gpu.submit(|encoder| on_gpu.plan.read_back_step_counts(encoder));
    let expected = StepCounts {
        steps: 9,
        clipped: 4,
        non_finite: 2,
        skipped: 2,
        consecutive_skips: 0,
        largest_norm: 9.0,
    };
    assert_eq!((counts.wait().unwrap(), on_cpu.step_counts()), (vec![expected], &[expected][..]));
}

#[test]
fn non_finite_gradients_with_a_finite_norm_leave_no_history() {
    let z_clip = ZClip { warm_up: 9, ..ZClip::default() };
    let clip = Clip::by_global_norm(9.0).norm_type(NormType::P(0.0)).z_clip(z_clip);
    let (mut on_gpu, mut on_cpu) = (OnGpu::new(clip), cpu::ClipPlan::new(&[clip]).unwrap());
    let steps: [&mut dyn Steps; 2] = [&mut on_gpu, &mut on_cpu];
    for steps in steps {
        for (number, norm, mean) in [(0.0, 0.0, 0.0), (f32::INFINITY, 1.0, 0.0), (f32::NAN, 1.0, 0.0)] {
            let (record, history) = steps.step(number);
            assert_eq!((record.total_norm, history.mean, history.steps), (norm, mean, 1));
        }
        let (_, history) = steps.step(5.0);
        let is_counted = history.steps == 2 && history.mean == 0.5 && is_near(history.deviation, 0.5, 0.5);
        assert!(is_counted, "{history:?}");
    }
}

/// After a warm-up of zeros there is no limit, and the history starts with the first norm above zero.
#[test]
fn norms_of_zero_set_no_limit() {
    let clip = clip(ZClip { warm_up: 2, ..ZClip::default() });
    let (mut on_gpu, mut on_cpu) = (OnGpu::new(clip), cpu::ClipPlan::new(&[clip]).unwrap());
    let steps: [&mut dyn Steps; 2] = [&mut on_gpu, &mut on_cpu];
    for steps in steps {
        for number in [0.0, 0.0, 0.0, 3.0, 3.1] {
            let (record, _) = steps.step(number);
            assert!(!record.clipped() && record.total_norm == number, "{record:?}");
        }
        let (record, history) = steps.step(1e6);
        assert!(record.clipped() && history.mean > 0.0, "a spike is clipped again: {record:?}, {history:?}");
    }
}

/// A norm beyond f32 is a spike, which enters the history as its limit.
#[test]
fn norms_beyond_f32_are_spikes() {
    let clip = clip(ZClip { warm_up: 2, ..ZClip::default() }).norm_type(NormType::P(0.5));
    let spike = [3e38_f32; 4];
    let limited = |record: &ClipRecord, history: NormHistory| {
        let factor = f64::from(record.factor_significand) * f64::from(record.factor_exponent).exp2();
        // The norm is 16 times an element.
        let norm = 16.0 * f64::from(spike[0]) * factor;
        assert!((1.0..1.5).contains(&norm) && (1.0..1.5).contains(&history.mean), "{norm}, {history:?}");
    };
    let gpu = gpu();
    let buffer = gpu.writable(16);
    let plan = gpu.clipper.prepare(&[Gradient::new(&buffer, DType::F32)], clip).unwrap();
    let mut on_cpu = cpu::ClipPlan::new(&[clip]).unwrap();
    for (step, numbers) in [[0.0625; 4], spike, [0.08; 4], [0.07; 4], spike].into_iter().enumerate() {
        gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&numbers));
        let (record, history) = gpu.submit(|encoder| {
            plan.encode(encoder);
            (plan.read_back(encoder), plan.read_back_histories(encoder))
        });
        let (record, history) = (record.wait().unwrap(), history.wait().unwrap()[0]);
        let mut after = numbers;
        let expected = on_cpu.clip(&mut [cpu::Gradient::f32(&mut after)]).unwrap()[0];
        assert_eq!((record.non_finite(), record.total_norm), (false, expected.total_norm));
        assert!(is_near(history.mean, on_cpu.histories()[0].mean, history.mean), "{history:?}");
        assert_eq!(history.steps, on_cpu.histories()[0].steps);
        match step {
            // During the warm-up it is not clipped.
            1 => assert_eq!((history.steps, after), (1, spike)),
            4 => {
                limited(&expected, on_cpu.histories()[0]);
                limited(&record, history);
                assert!((16.0..24.0).contains(&(256.0 * after[0])), "{after:?}");
            }
            _ => assert_eq!(after, numbers),
        }
    }
}

/// For α = 0 the mean is the last norm, even if that is far below the others.
#[test]
fn a_mean_falls_as_far_as_norms_do() {
    for (alpha, mean) in [(0.0, 5.0), (1e-6, 1e24)] {
        let clip = clip(ZClip { alpha, warm_up: 1, ..ZClip::default() });
        let (mut on_gpu, mut on_cpu) = (OnGpu::new(clip), cpu::ClipPlan::new(&[clip]).unwrap());
        let steps: [&mut dyn Steps; 2] = [&mut on_gpu, &mut on_cpu];
        for steps in steps {
            steps.step(1e30);
            let history = steps.step(5.0).1;
            // The device computes 1 - α in f32.
            assert!((history.mean - mean).abs() <= 0.1 * mean, "α {alpha}: {history:?}");
        }
    }
}

#[test]
fn a_fixed_limit_below_the_moving_one_holds() {
    let z_clip = ZClip { warm_up: 2, ..ZClip::default() };
    let clip = Clip::by_global_norm(0.5).epsilon(Epsilon::None).z_clip(z_clip);
    let (mut on_gpu, mut on_cpu) = (OnGpu::new(clip), cpu::ClipPlan::new(&[clip]).unwrap());
    let steps: [&mut dyn Steps; 2] = [&mut on_gpu, &mut on_cpu];
    for steps in steps {
        for number in [1.0, 1.2, 8.0, 1.0] {
            let (record, history) = steps.step(number);
            assert!(is_near(record.clip_coef, 0.5 / number, 1.0), "{record:?}");
            assert!(history.mean >= 1.0, "the fixed limit does not enter the history: {history:?}");
        }
    }
}
