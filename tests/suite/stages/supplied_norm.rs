//! Stage `supplied_norm`: clips by a norm that the caller supplies.

use gradclip::{Clip, DType, Error, Gradient, NonFinite, cpu};

use crate::common::numbers::bits;
use crate::{assert_near, gpu};

const NORM: Clip = Clip::by_global_norm(1.0);

#[test]
fn gradients_are_clipped_by_the_supplied_norm() {
    let gpu = gpu();
    let clip = Clip::by_supplied_norm(1.0);
    let scaled = |factor: f32| [3.0 * factor, -4.0 * factor];
    let infinity = f32::INFINITY;
    for (norm, policy, loss_scale, factor) in [
        (8.0, NonFinite::Propagate, 1.0, 0.125),
        (0.5, NonFinite::Propagate, 1.0, 1.0),
        (8.0, NonFinite::Propagate, 4.0, 0.125 / 4.0),
        (infinity, NonFinite::Propagate, 1.0, 0.0),
        (infinity, NonFinite::Skip, 2.0, 1.0),
        (f32::NAN, NonFinite::Zero, 1.0, 0.0),
        // The NaN that marks a missing norm on the device.
        (f32::from_bits(u32::MAX), NonFinite::Zero, 1.0, 0.0),
    ] {
        let clip = clip.non_finite(policy).loss_scale(loss_scale);
        let buffer = gpu.buffer(&[3.0, -4.0]);
        let gradient = Gradient::new(&buffer, DType::F32);
        let plan = gpu.clipper.prepare(&[gradient], clip).unwrap();
        // Without a norm the gradients are neither clipped nor unscaled, and the ticket returns an error.
        let (before, missing, one) = gpu.submit(|encoder| {
            let before = plan.read_back(encoder);
            plan.encode(encoder);
            (before, plan.read_back_all(encoder), plan.read_back(encoder))
        });
        assert_eq!(before.wait(), Err(Error::NothingMeasured));
        assert_eq!((missing.wait(), one.wait()), (Err(Error::NormNotSupplied), Err(Error::NormNotSupplied)));
        assert_eq!(gpu.read::<f32>(&buffer), [3.0, -4.0]);
        plan.supply_norm(&gpu.queue, norm).unwrap();
        let before: Vec<f32> = gpu.read(&buffer);
        let record = gpu.record(&plan);

        let mut on_cpu = [before[0], before[1]];
        let expected = cpu::clip_with_norm(&mut [cpu::Gradient::f32(&mut on_cpu)], clip, norm).unwrap();
        assert!(record.total_norm == norm || record.total_norm.is_nan() && norm.is_nan(), "{record:?}");
        assert_near(record.factor, factor);
        assert_near(expected.factor, factor);
        assert_eq!(
            (record.skip(), record.zeroed(), record.non_finite(), record.clipped()),
            (expected.skip(), expected.zeroed(), expected.non_finite(), expected.clipped()),
        );
        if loss_scale == 1.0 && policy == NonFinite::Propagate {
            let after: Vec<f32> = gpu.read(&buffer);
            assert_eq!(bits(&[after]), bits(&[scaled(record.factor).to_vec()]));
        }
    }
}

#[test]
fn a_norm_is_copied_from_another_plan() {
    let gpu = gpu();
    let [one, other] = [[3.0, -4.0], [5.0, 12.0]].map(|triangle| gpu.buffer(&triangle));
    let measured = gpu.clipper.prepare(&[Gradient::new(&one, DType::F32)], NORM.coefficient_only()).unwrap();
    let supplied =
        gpu.clipper.prepare(&[Gradient::new(&other, DType::F32)], Clip::by_supplied_norm(2.5)).unwrap();
    let ticket = gpu.submit(|encoder| {
        measured.encode(encoder);
        // The first field of the record.
        supplied.copy_norm(encoder, measured.record_buffer().unwrap(), 0).unwrap();
        supplied.encode(encoder);
        supplied.read_back(encoder)
    });
    let record = ticket.wait().unwrap();
    assert_eq!(record.total_norm, 5.0);
    assert_near(record.factor, 0.5);
    assert_eq!(gpu.read::<f32>(&other), [5.0 * record.factor, 12.0 * record.factor]);
    assert_eq!(gpu.read::<f32>(&one), [3.0, -4.0]);
}

/// A negative norm counts as NaN; -0.0 is zero.
#[test]
fn an_invalid_supplied_norm_counts_as_nan() {
    let gpu = gpu();
    let buffer = gpu.writable(4);
    let clip = Clip::by_supplied_norm(1.0).non_finite(NonFinite::Skip);
    let plan = gpu.clipper.prepare(&[Gradient::new(&buffer, DType::F32)], clip).unwrap();
    for (norm, skip) in [(-5.0, true), (-0.0, false), (f32::NAN, true), (f32::INFINITY, true), (1e-45, false)]
    {
        plan.supply_norm(&gpu.queue, norm).unwrap();
        let on_gpu = gpu.record(&plan);
        let on_cpu = cpu::clip_with_norm(&mut [cpu::Gradient::f32(&mut [3.0])], clip, norm).unwrap();
        for record in [on_gpu, on_cpu] {
            let is_same = record.total_norm == norm || skip && record.total_norm.is_nan();
            assert!(record.skip() == skip && is_same, "{norm} became {record:?}");
        }
    }
}

#[test]
fn only_clips_by_a_supplied_norm_take_one() {
    let supplied = Clip::by_supplied_norm(1.0);
    assert_eq!(cpu::clip(&mut [], supplied), Err(Error::NormNotSupplied));
    for measures in [NORM, Clip::by_norm(1.0), Clip::by_rms(1.0), Clip::by_value(1.0)] {
        assert_eq!(cpu::clip_with_norm(&mut [], measures, 1.0), Err(Error::UnexpectedNorm));
    }
    let error = Error::NonFinite { gradient: None, total_norm: f32::INFINITY, record: None };
    let clip = supplied.non_finite(NonFinite::Error);
    assert_eq!(cpu::clip_with_norm(&mut [], clip, f32::INFINITY), Err(error));
}
