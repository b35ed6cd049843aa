//! What lasts from step to step: counts, and limits that follow past norms.

use gradclip::slices::{DeviceChoice, SliceClipper};
use gradclip::stats::{NormHistory, StepCounts};
use gradclip::{
    Clip, ClipPlan, ClipRecord, DType, Epsilon, Error, Gradient, NonFinite, NormType, ZClip, cpu, wgpu,
};
use serde_json::Value;

use crate::common::Gpu;
use crate::gpu;

/// A sequence of norms, and what comes of it.
struct Sequence {
    name: String,
    z_clip: ZClip,
    norms: Vec<f32>,
    limits: Vec<f32>,
    histories: Vec<(f32, f32)>,
}

/// Those of `tests/fixtures/peers.json`, which Python has computed from the formulas of the paper.
fn sequences() -> Vec<Sequence> {
    let peers: Value = serde_json::from_str(include_str!("../fixtures/peers.json")).unwrap();
    let decimal = |value: &Value| value.as_str().unwrap().parse().unwrap();
    let numbers = |value: &Value| -> Vec<f32> {
        let bits = |value: &Value| u32::from_str_radix(value.as_str().unwrap(), 16).unwrap();
        value.as_array().unwrap().iter().map(|number| f32::from_bits(bits(number))).collect()
    };
    // The paper's 1e-6 beside the deviation makes a difference where norms are that small; here there is none.
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

/// Something that clips a gradient of one element, step after step.
trait Steps {
    /// Its record, and its history after the step.
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
fn a_history_can_be_saved_and_restored_anywhere() {
    let sequence = &sequences()[0];
    let mut on_gpu = OnGpu::new(clip(sequence.z_clip));
    let mut on_cpu = cpu::ClipPlan::new(&[clip(sequence.z_clip)]).unwrap();
    let mut uninterrupted = OnGpu::new(clip(sequence.z_clip));
    let mut history = NormHistory::default();
    for (step, &norm) in sequence.norms.iter().enumerate() {
        // A new plan every few steps, as when buffers have moved; and every few steps on the other path.
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
fn the_smaller_limit_holds_and_what_is_not_finite_is_forgotten() {
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
                // The mean is 1, more or less.
                assert!(record.clip_coef < 1.2 / 9.0, "by the history, not by 1.5: {record:?}");
            }
            assert!(!record.clipped() || number.is_nan() || number > 1.2, "{record:?}");
            before = history;
        }
    }
    let counts = on_gpu.gpu.submit(|encoder| on_gpu.plan.read_back_step_counts(encoder));
    let expected = StepCounts { steps: 9, clipped: 4, non_finite: 2, largest_norm: 9.0 };
    assert_eq!((counts.wait().unwrap(), on_cpu.step_counts()), (vec![expected], &[expected][..]));
}

#[test]
fn gradients_that_are_not_finite_are_forgotten_though_their_norm_is() {
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

/// A warm-up that saw nothing but zeros leaves no limit, and what comes after it is the first that counts.
#[test]
fn norms_of_zero_limit_nothing() {
    let clip = clip(ZClip { warm_up: 2, ..ZClip::default() });
    let (mut on_gpu, mut on_cpu) = (OnGpu::new(clip), cpu::ClipPlan::new(&[clip]).unwrap());
    let steps: [&mut dyn Steps; 2] = [&mut on_gpu, &mut on_cpu];
    for steps in steps {
        for number in [0.0, 0.0, 0.0, 3.0, 3.1] {
            let (record, _) = steps.step(number);
            assert!(!record.clipped() && record.total_norm == number, "{record:?}");
        }
        let (record, history) = steps.step(1e6);
        assert!(record.clipped() && history.mean > 0.0, "a spike is one again: {record:?}, {history:?}");
    }
}

/// Beyond f32 a norm is a spike, in which the history sees no more than its limit.
#[test]
fn norms_beyond_f32_are_spikes() {
    let clip = clip(ZClip { warm_up: 2, ..ZClip::default() }).norm_type(NormType::P(0.5));
    let spike = [3e38_f32; 4];
    let limited = |record: &ClipRecord, history: NormHistory| {
        let factor = f64::from(record.factor_significand) * f64::from(record.factor_exponent).exp2();
        // A norm of 16 times an element.
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
            // The warm-up leaves it alone.
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

/// Nothing negative is a norm, whoever supplies it, and zero has no sign.
#[test]
fn a_supplied_norm_that_is_none_is_nan() {
    let gpu = gpu();
    let buffer = gpu.writable(4);
    let clip = Clip::by_supplied_norm(1.0).non_finite(NonFinite::Skip);
    let plan = gpu.clipper.prepare(&[Gradient::new(&buffer, DType::F32)], clip).unwrap();
    for (norm, skip) in [(-5.0, true), (-0.0, false), (f32::NAN, true), (f32::INFINITY, true), (1e-45, false)]
    {
        plan.supply_norm(&gpu.queue, norm).unwrap();
        let record = gpu.submit(|encoder| {
            plan.encode(encoder);
            plan.read_back(encoder)
        });
        let on_cpu = cpu::clip_with_norm(&mut [cpu::Gradient::f32(&mut [3.0])], clip, norm).unwrap();
        for record in [record.wait().unwrap(), on_cpu] {
            let is_same = record.total_norm == norm || skip && record.total_norm.is_nan();
            assert!(record.skip() == skip && is_same, "{norm} became {record:?}");
        }
    }
}

/// What a plan on the CPU changes between steps is what a new plan would have done.
#[test]
fn a_plan_on_the_cpu_changes_from_step_to_step() {
    let clips = |limits: [f32; 2], scale| {
        limits.map(|limit| Clip::by_global_norm(limit).epsilon(Epsilon::None).loss_scale(scale))
    };
    let step = |plan: &mut cpu::ClipPlan| {
        let (mut a, mut b) = ([3.0, 4.0], [-12.0]);
        let mut gradients = [cpu::Gradient::f32(&mut a), cpu::Gradient::f32(&mut b).group(1)];
        (plan.clip(&mut gradients).unwrap(), a, b)
    };
    let mut plan = cpu::ClipPlan::new(&clips([1.0, 2.0], 1.0)).unwrap();
    let fresh = |limits, scale| step(&mut cpu::ClipPlan::new(&clips(limits, scale)).unwrap());
    assert_eq!(step(&mut plan), fresh([1.0, 2.0], 1.0));
    plan.set_max_norms(&[0.5, 100.0]).unwrap();
    assert_eq!(step(&mut plan), fresh([0.5, 100.0], 1.0));
    plan.set_loss_scale(4.0).unwrap();
    assert_eq!(step(&mut plan), fresh([0.5, 100.0], 4.0));
    assert_eq!(plan.set_max_norms(&[1.0]), Err(Error::LimitCount { given: 1, groups: 2 }));
    let error = Error::InGroup { group: 1, error: Box::new(Error::MaxNorm { given: -2.0 }) };
    assert_eq!(plan.set_max_norms(&[1.0, -2.0]), Err(error));
    assert_eq!(plan.set_loss_scale(0.0), Err(Error::LossScale { given: 0.0 }));
    assert_eq!(step(&mut plan), fresh([0.5, 100.0], 4.0), "an error changes nothing");

    let counts = [StepCounts { steps: 7, clipped: 3, non_finite: 1, largest_norm: 9.0 }; 2];
    plan.set_step_counts(&counts).unwrap();
    step(&mut plan);
    assert_eq!(plan.step_counts()[0], StepCounts { steps: 8, clipped: 4, ..counts[0] });
    plan.set_step_counts(&[]).unwrap();
    step(&mut plan);
    assert_eq!((plan.step_counts().len(), plan.step_counts()[1].steps), (2, 1));
    plan.set_step_counts(&counts[..1]).unwrap();
    let error = plan.clip(&mut [cpu::Gradient::f32(&mut [1.0])]).unwrap_err();
    assert_eq!(error, Error::StateCount { what: "step counts", given: 1, records: 2 });

    let mut by_value = cpu::ClipPlan::new(&[Clip::by_value(1.0)]).unwrap();
    let needs_norm = |what| Err(Error::NeedsNorm { what, clip: "a clip by value" });
    assert_eq!(by_value.set_max_norms(&[1.0]), needs_norm("set_max_norms"));
    assert_eq!(by_value.set_loss_scale(2.0), needs_norm("set_loss_scale"));
    assert_eq!(by_value.set_step_counts(&counts), needs_norm("set_step_counts"));
}

/// Without memory the mean is the last norm, however far it has fallen.
#[test]
fn a_mean_falls_as_far_as_norms_do() {
    for (alpha, mean) in [(0.0, 5.0), (1e-6, 1e24)] {
        let clip = clip(ZClip { alpha, warm_up: 1, ..ZClip::default() });
        let (mut on_gpu, mut on_cpu) = (OnGpu::new(clip), cpu::ClipPlan::new(&[clip]).unwrap());
        let steps: [&mut dyn Steps; 2] = [&mut on_gpu, &mut on_cpu];
        for steps in steps {
            steps.step(1e30);
            let history = steps.step(5.0).1;
            // 1 - α is an f32 on the device.
            assert!((history.mean - mean).abs() <= 0.1 * mean, "α {alpha}: {history:?}");
        }
    }
}

#[test]
fn a_fixed_limit_below_the_other_holds() {
    let z_clip = ZClip { warm_up: 2, ..ZClip::default() };
    let clip = Clip::by_global_norm(0.5).epsilon(Epsilon::None).z_clip(z_clip);
    let (mut on_gpu, mut on_cpu) = (OnGpu::new(clip), cpu::ClipPlan::new(&[clip]).unwrap());
    let steps: [&mut dyn Steps; 2] = [&mut on_gpu, &mut on_cpu];
    for steps in steps {
        for number in [1.0, 1.2, 8.0, 1.0] {
            let (record, history) = steps.step(number);
            assert!(is_near(record.clip_coef, 0.5 / number, 1.0), "{record:?}");
            assert!(history.mean >= 1.0, "norms are remembered without the fixed limit: {history:?}");
        }
    }
}

/// Gradients in two groups, of which each step has other numbers.
fn grouped(step: u16) -> [f32; 3] {
    let odd = if step % 5 == 4 { f32::NAN } else { f32::from(step) };
    [0.25 * f32::from(step), 2.0, odd]
}

#[test]
fn steps_are_counted_on_the_device_for_each_record() {
    let gpu = gpu();
    let buffer = gpu.writable(12);
    let gradient = |at| Gradient::new(&buffer, DType::F32).elements(at..at + 1);
    let gradients = [gradient(0), gradient(1), gradient(2).group(1)];
    for clips in [vec![Clip::by_global_norm(2.5); 2], vec![Clip::by_norm(2.5); 2]] {
        let counting: Vec<_> = clips.iter().map(|clip| clip.count_steps()).collect();
        let plan = gpu.clipper.prepare_groups(&gradients, &counting).unwrap();
        let without = gpu.clipper.prepare_groups(&gradients, &clips).unwrap();
        assert_eq!(plan.dispatches(), without.dispatches() + 1);
        let mut on_cpu = cpu::ClipPlan::new(&clips).unwrap();
        let mut by_hand = vec![StepCounts::default(); plan.records()];
        for step in 0..17 {
            let mut numbers = grouped(step);
            gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&numbers));
            let records = gpu.submit(|encoder| {
                plan.encode(encoder);
                plan.read_back_all(encoder)
            });
            for (counts, record) in by_hand.iter_mut().zip(records.wait().unwrap()) {
                counts.add(&record);
            }
            let [a, b, c] = numbers.each_mut().map(|number| cpu::Gradient::f32(std::slice::from_mut(number)));
            on_cpu.clip(&mut [a, b, c.group(1)]).unwrap();
        }
        let counts = gpu.submit(|encoder| plan.read_back_step_counts(encoder)).wait().unwrap();
        assert_eq!(counts, by_hand);
        assert_eq!(counts, on_cpu.step_counts());
        assert_eq!((counts[0].steps, counts.last().unwrap().non_finite), (17, 3));

        plan.set_step_counts(&gpu.queue, &vec![StepCounts::default(); plan.records()]).unwrap();
        let counts = gpu.submit(|encoder| {
            plan.encode_norm(encoder);
            plan.read_back_step_counts(encoder)
        });
        assert_eq!(counts.wait().unwrap()[0].steps, 1);
    }
}

#[test]
fn what_a_plan_does_not_keep_is_an_error() {
    let gpu = gpu();
    let buffer = gpu.writable(8);
    let gradients = [Gradient::new(&buffer, DType::F32)];
    let plan = gpu.clipper.prepare(&gradients, Clip::by_global_norm(1.0)).unwrap();
    let (histories, counts) =
        gpu.submit(|encoder| (plan.read_back_histories(encoder), plan.read_back_step_counts(encoder)));
    let no_history = Error::NotEnabled { what: "norm histories", with: "z_clip" };
    assert_eq!(histories.wait(), Err(no_history.clone()));
    assert_eq!(plan.set_histories(&gpu.queue, &[]), Err(no_history.clone()));
    assert!(matches!(counts.wait(), Err(Error::NotEnabled { with: "count_steps", .. })));
    assert!(matches!(plan.set_step_counts(&gpu.queue, &[]), Err(Error::NotEnabled { .. })));

    let z_clip = Clip::by_global_norm(1.0).z_clip(ZClip::default());
    let plan = gpu.clipper.prepare(&gradients, z_clip.count_steps()).unwrap();
    let two = [NormHistory::default(); 2];
    let error = Error::StateCount { what: "norm histories", given: 2, records: 1 };
    assert_eq!(plan.set_histories(&gpu.queue, &two), Err(error.clone()));
    let given = NormHistory { mean: f32::NAN, ..NormHistory::default() };
    assert!(matches!(plan.set_histories(&gpu.queue, &[given]), Err(Error::NormHistory { record: 0, .. })));
    for largest_norm in [f32::NAN, f32::INFINITY, -1.0] {
        let given = [StepCounts { largest_norm, ..StepCounts::default() }];
        let refused = |result| matches!(result, Err(Error::StepCounts { record: 0, .. }));
        assert!(refused(plan.set_step_counts(&gpu.queue, &given)));
        assert!(refused(cpu::ClipPlan::new(&[z_clip]).unwrap().set_step_counts(&given)));
    }
    let mut on_cpu = cpu::ClipPlan::new(&[z_clip]).unwrap();
    on_cpu.set_histories(&two).unwrap();
    let mut element = [3.0];
    assert_eq!(on_cpu.clip(&mut [cpu::Gradient::f32(&mut element)]), Err(error));
    assert_eq!(element, [3.0]);
    let mut without = cpu::ClipPlan::new(&[Clip::by_global_norm(1.0)]).unwrap();
    assert_eq!(without.set_histories(&two), Err(no_history));
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let good = ZClip::default();
    for given in [
        ZClip { alpha: 1.0, ..good },
        ZClip { alpha: -0.1, ..good },
        ZClip { alpha: f32::NAN, ..good },
        ZClip { z_threshold: 0.0, ..good },
        ZClip { z_threshold: f32::INFINITY, ..good },
        ZClip { z_threshold: f32::NAN, ..good },
        ZClip { warm_up: 0, ..good },
    ] {
        let clip = Clip::by_global_norm(1.0).z_clip(given);
        let message = format!("{:?}", Error::ZClip { given });
        assert_eq!(format!("{:?}", cpu::ClipPlan::new(&[clip]).unwrap_err()), message);
        assert_eq!(format!("{:?}", gpu().clipper.prepare(&[], clip).unwrap_err()), message);
    }
    let relative = Clip::by_parameter_norm(0.1, 1e-3).z_clip(good);
    assert_eq!(cpu::ClipPlan::new(&[relative]).unwrap_err(), Error::ConflictingLimits);
    let by_value = Clip::by_value(1.0);
    for (clip, what) in [
        (by_value.z_clip(good), "z_clip"),
        (by_value.count_steps(), "count_steps"),
        (by_value.tensor_stats(), "tensor_stats"),
    ] {
        let error = Error::NeedsNorm { what, clip: "Clip::by_value" };
        assert_eq!(cpu::ClipPlan::new(&[clip]).unwrap_err(), error);
    }
    // Nothing lasts from one call to the next.
    for (clip, option) in [
        (Clip::by_global_norm(1.0).z_clip(good), "z_clip"),
        (Clip::by_global_norm(1.0).tensor_stats(), "tensor_stats"),
        (Clip::by_norm(1.0).count_steps(), "count_steps"),
    ] {
        let mut gradient = [3.0];
        let error = Error::NeedsPlan { option };
        assert_eq!(cpu::clip(&mut [cpu::Gradient::f32(&mut gradient)], clip).unwrap_err(), error);
        for choice in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
            let clipper = SliceClipper::new(&choice).unwrap();
            let mut gradients = [cpu::Gradient::f32(&mut gradient)];
            assert_eq!(clipper.clip(&mut gradients, clip).unwrap_err(), error);
        }
        assert_eq!(gradient, [3.0], "nothing was clipped");
    }
    let counted = Clip::by_supplied_norm(1.0).count_steps();
    assert_eq!(cpu::clip_with_norm(&mut [], counted, 1.0), Err(Error::NeedsPlan { option: "count_steps" }));
    assert_eq!(
        cpu::tensor_stats(&[], Clip::by_norm(1.0).z_clip(good)),
        Err(Error::NeedsPlan { option: "z_clip" })
    );
}
