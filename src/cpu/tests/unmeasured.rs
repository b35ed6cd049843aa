//! Gradients that are excluded from the norm, or from scaling.

use super::*;
use crate::{NonFinite, NormType};

#[test]
fn unmeasured_gradients_are_scaled() {
    for bad in [f32::NAN, f32::INFINITY, 1e30, 0.0] {
        for norm_type in [NormType::L2, NormType::Inf, NormType::P(3.0), NormType::P(-1.0)] {
            let (mut a, mut out, mut b) = ([3.0, 1.0], [bad, 8.0], [4.0]);
            let mut gradients =
                [Gradient::f32(&mut a), Gradient::f32(&mut out).unmeasured(), Gradient::f32(&mut b)];
            let clip = Clip::by_global_norm(0.5).norm_type(norm_type).non_finite(NonFinite::Error);
            let record = cpu::clip(&mut gradients, clip).unwrap()[0];
            let (mut alone_a, mut alone_b) = ([3.0, 1.0], [4.0]);
            assert_eq!(clip_slices(&mut [&mut alone_a[..], &mut alone_b], clip), Ok(vec![record]));
            assert_eq!((a, b), (alone_a, alone_b));
            assert!(record.clipped() && !record.non_finite());
            assert_eq!(out[1], 8.0 * record.factor, "{norm_type:?} with {bad}");
        }
    }
}

#[test]
fn unscaled_gradients_are_measured() {
    let clips = [Clip::by_global_norm(1.0), Clip::by_norm(1.0), Clip::by_value(1.0)];
    for (clip, records) in clips.into_iter().zip([1, 2, 0]) {
        let (mut a, mut kept) = ([3.0], [-4.0, f32::NAN]);
        let mut gradients = [Gradient::f32(&mut a), Gradient::f32(&mut kept).unscaled()];
        assert_eq!(cpu::clip(&mut gradients, clip).unwrap().len(), records, "{clip:?}");
        assert_eq!(bits(&[kept]), bits(&[[-4.0, f32::NAN]]), "{clip:?}");
        assert_ne!(a, [3.0], "{clip:?}");
    }
}

#[test]
fn zero_policy_writes_unmeasured_but_not_unscaled_gradients() {
    let (mut bad, mut out, mut kept) = ([f32::NAN], [8.0], [7.0]);
    let mut gradients =
        [Gradient::f32(&mut bad), Gradient::f32(&mut out).unmeasured(), Gradient::f32(&mut kept).unscaled()];
    clip(&mut gradients, Clip::by_global_norm(1.0).non_finite(NonFinite::Zero)).unwrap();
    assert_eq!((bad, out, kept), ([0.0], [0.0], [7.0]));
}
