//! Updates of a plan between steps: limits and loss scales.

use gradclip::stats::StepCounts;
use gradclip::wgpu::{Buffer, CommandEncoder};
use gradclip::{Clip, ClipPlan, ClipRecord, DType, Epsilon, Error, Gradient, cpu};

use crate::{assert_near, gpu};

const NORM: Clip = Clip::by_global_norm(1.0);

/// Returns a gradient of norm 5, and one of norm 13.
fn triangles() -> [Buffer; 2] {
    [[3.0, -4.0], [5.0, 12.0]].map(|triangle| gpu().buffer(&triangle))
}

/// Prepares a plan in which the second gradient is in the last group.
fn by_groups([one, other]: &[Buffer; 2], clips: &[Clip]) -> ClipPlan {
    let gradients = [Gradient::new(one, DType::F32), Gradient::new(other, DType::F32).group(clips.len() - 1)];
    gpu().clipper.prepare_groups(&gradients, clips).unwrap()
}

fn norms(records: &[ClipRecord]) -> Vec<f32> {
    records.iter().map(|record| record.total_norm).collect()
}

#[test]
fn limits_change_for_later_submissions() {
    let gpu = gpu();
    let buffers = triangles();
    let plan = by_groups(&buffers, &[NORM.coefficient_only(); 2]);
    let mut encoder = gpu.encoder();
    plan.encode(&mut encoder);
    let ticket = plan.read_back_all(&mut encoder);
    plan.set_max_norms(&gpu.queue, &[2.5, 26.0]).unwrap();
    gpu.queue.submit([encoder.finish()]);
    let [first, second] = ticket.wait().unwrap().try_into().unwrap();
    assert_near(first.clip_coef, 0.5);
    assert_eq!((second.clip_coef, second.clipped()), (1.0, false));

    plan.set_max_norms(&gpu.queue, &[0.0, f32::INFINITY]).unwrap();
    assert_eq!(gpu.records(&plan).iter().map(|record| record.clip_coef).collect::<Vec<_>>(), [0.0, 1.0]);
    // A rejected update changes nothing.
    plan.set_max_norms(&gpu.queue, &[1.0, -1.0]).unwrap_err();
    plan.set_max_norms(&gpu.queue, &[1.0]).unwrap_err();
    assert_eq!(gpu.records(&plan)[0].clip_coef, 0.0);
}

/// The limit of each gradient is computed from the new threshold and its length.
#[test]
fn an_rms_threshold_changes() {
    let gpu = gpu();
    let gradients = [gpu.buffer(&[3.0; 16]), gpu.buffer(&[3.0; 5])];
    let gradients = gradients.each_ref().map(|buffer| Gradient::new(buffer, DType::F32));
    let plan = gpu.clipper.prepare(&gradients, Clip::by_rms(1.0).coefficient_only()).unwrap();
    for (threshold, coef) in [(1.0, 1.0 / 3.0), (1.5, 0.5), (3.5, 1.0)] {
        plan.set_max_norms(&gpu.queue, &[threshold]).unwrap();
        for record in gpu.records(&plan) {
            assert_near(record.clip_coef, coef);
        }
    }
}

#[test]
fn limits_change_within_an_encoder() {
    let gpu = gpu();
    let buffers = triangles();
    let plan = by_groups(&buffers, &[NORM.coefficient_only(); 2]);
    let limits = gpu.buffer(&[-7.0, 2.5, 6.5]);
    let tickets = gpu.submit(|encoder| {
        plan.encode(encoder);
        let first = plan.read_back_all(encoder);
        plan.copy_max_norm(encoder, 0, &limits, 4).unwrap();
        plan.encode(encoder);
        let second = plan.read_back_all(encoder);
        plan.copy_max_norm(encoder, 1, &limits, 8).unwrap();
        plan.encode(encoder);
        [first, second, plan.read_back_all(encoder)]
    });
    let expected = [[0.2, 1.0 / 13.0], [0.5, 1.0 / 13.0], [0.5, 0.5]];
    for (ticket, expected) in tickets.into_iter().zip(expected) {
        for (record, expected) in ticket.wait().unwrap().iter().zip(expected) {
            assert_near(record.clip_coef, expected);
        }
    }
}

#[test]
fn the_loss_scale_changes() {
    let gpu = gpu();
    let buffers = triangles();
    let plan = by_groups(&buffers, &[Clip::by_global_norm(100.0).loss_scale(2.0); 2]);
    assert_eq!(norms(&gpu.records(&plan)), [2.5, 6.5]);
    assert_eq!(gpu.read::<f32>(&buffers[0]), [1.5, -2.0]);
    // The gradients are already unscaled, and within the limit.
    plan.set_loss_scale(&gpu.queue, 0.5).unwrap();
    assert_eq!(norms(&gpu.records(&plan)), [5.0, 13.0]);
    assert_eq!(gpu.read::<f32>(&buffers[0]), [3.0, -4.0]);

    let inverses = gpu.buffer(&[-7.0, 0.25]);
    let ticket = gpu.submit(|encoder| {
        plan.copy_inverse_loss_scale(encoder, &inverses, 4).unwrap();
        plan.encode(encoder);
        plan.read_back_all(encoder)
    });
    let records = ticket.wait().unwrap();
    assert_eq!((norms(&records), records[1].factor), (vec![1.25, 3.25], 0.25));
    assert_eq!(gpu.read::<f32>(&buffers[1]), [1.25, 3.0]);
    // The loss scale persists.
    assert_eq!(norms(&gpu.records(&plan)), [0.3125, 0.8125]);
    plan.set_loss_scale(&gpu.queue, 0.0).unwrap_err();
    assert_eq!(norms(&gpu.records(&plan)), [0.078_125, 0.203_125]);
}

/// A clip by value with a loss scale takes a new one, in every element type and group; bounds and bits are those of a plan
/// that was prepared with it.
#[test]
fn the_loss_scale_of_a_clip_by_value_changes() {
    let gpu = gpu();
    let numbers = [0.5, -3.0, 12.0, -0.25, 1e-3, 7.0, f32::INFINITY, -0.0, 64.0];
    let halves = numbers.map(half::f16::from_f32);
    let clips =
        |scale| [Clip::by_value(1.0).loss_scale(scale), Clip::by_value_range(-0.5, 2.0).loss_scale(scale)];
    let clipped = |update: &dyn Fn(&ClipPlan, &mut CommandEncoder), scale| {
        // A buffer of halves has whole words.
        let (one, other) = (gpu.buffer(&numbers), gpu.buffer_of(&[&halves[..], &halves[..1]].concat()));
        let gradients = [Gradient::f32(&one), Gradient::f16(&other).group(1)];
        let plan = gpu.clipper.prepare_groups(&gradients, &clips(scale)).unwrap();
        gpu.submit(|encoder| {
            update(&plan, encoder);
            plan.encode(encoder);
        });
        (gpu.read::<u32>(&one), gpu.read::<u16>(&other))
    };
    let inverses = gpu.buffer(&[-7.0, 0.25]);
    for scale in [1.0, 8.0] {
        let expected = clipped(&|_, _| {}, 4.0);
        assert_ne!(clipped(&|_, _| {}, scale), expected);
        assert_eq!(clipped(&|plan, _| plan.set_loss_scale(&gpu.queue, 4.0).unwrap(), scale), expected);
        let copy =
            |plan: &ClipPlan, encoder: &mut _| plan.copy_inverse_loss_scale(encoder, &inverses, 4).unwrap();
        assert_eq!(clipped(&copy, scale), expected);
    }
    // With a loss scale of 1, the bits are those of a clip without one.
    let one = gpu.buffer(&[f32::from_bits(0x7f80_0001), f32::from_bits(1), -0.0, 3.0]);
    let plan = gpu.clipper.prepare(&[Gradient::f32(&one)], Clip::by_value(1.0).loss_scale(1.0)).unwrap();
    gpu.submit(|encoder| plan.encode(encoder));
    assert_eq!(gpu.read::<u32>(&one), [0x7f80_0001, 1, 0x8000_0000, 1.0_f32.to_bits()]);

    // The same on the CPU.
    let step = |plan: &mut cpu::ClipPlan| {
        let (mut one, mut other) = (numbers, halves);
        let mut gradients = [cpu::Gradient::f32(&mut one), cpu::Gradient::f16(&mut other).group(1)];
        plan.clip(&mut gradients).unwrap();
        (one.map(f32::to_bits), other.map(half::f16::to_bits))
    };
    let mut plan = cpu::ClipPlan::new(&clips(1.0)).unwrap();
    let expected = step(&mut cpu::ClipPlan::new(&clips(4.0)).unwrap());
    assert_ne!(step(&mut plan), expected);
    plan.set_loss_scale(4.0).unwrap();
    assert_eq!(step(&mut plan), expected);
    assert_eq!(plan.set_loss_scale(-1.0), Err(Error::LossScale { given: -1.0 }));
    assert_eq!(step(&mut plan), expected);
}

/// An updated CPU plan gives the same results as a new one.
#[test]
fn updates_of_a_plan_on_the_cpu() {
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

    let counts = [StepCounts {
        steps: 7,
        clipped: 3,
        non_finite: 1,
        skipped: 1,
        consecutive_skips: 0,
        largest_norm: 9.0,
    }; 2];
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
    let not_enabled = Error::NotEnabled { what: "loss scale", with: "loss_scale" };
    assert_eq!(by_value.set_loss_scale(2.0), Err(not_enabled));
    assert_eq!(by_value.set_step_counts(&counts), needs_norm("set_step_counts"));
}
