//! Gradients that are not finite, and gradients with a loss scale.

use super::*;
use crate::{Epsilon, GradientId, NonFinite, NormType};

/// The record of a clip of two gradients by global norm to 1, and the bits of what became of them.
fn clipped(
    mut a: [f32; 3],
    mut b: [f32; 2],
    policy: NonFinite,
) -> Result<(ClipRecord, [u32; 3], [u32; 2]), Error> {
    let clip = Clip::by_global_norm(1.0).non_finite(policy);
    let record = clip_all(&mut [Gradient::f32(&mut a), Gradient::f32(&mut b)], clip)?[0];
    Ok((record, a.map(f32::to_bits), b.map(f32::to_bits)))
}

const FINITE: [f32; 3] = [3.0, -0.0, 1e-45];
const BAD: [[f32; 2]; 3] = [[-4.0, f32::NAN], [f32::NEG_INFINITY, 2.0], [-f32::NAN, f32::INFINITY]];

#[test]
fn skip_leaves_every_bit() {
    for bad in BAD {
        let (record, a, b) = clipped(FINITE, bad, NonFinite::Skip).unwrap();
        assert_eq!((a, b), (FINITE.map(f32::to_bits), bad.map(f32::to_bits)));
        assert!(record.skip() && record.non_finite() && !record.zeroed());
        assert_eq!((record.factor, record.first_non_finite()), (1.0, Some(1)));
    }
}

#[test]
fn zero_leaves_no_sign_and_no_nan() {
    for bad in BAD {
        let (record, a, b) = clipped(FINITE, bad, NonFinite::Zero).unwrap();
        assert_eq!((a, b), ([0; 3], [0; 2]));
        assert!(record.zeroed() && !record.skip());
        assert_eq!((record.factor, record.first_non_finite()), (0.0, Some(1)));
    }
}

#[test]
fn poison_leaves_no_number() {
    for bad in BAD {
        let (record, a, b) = clipped(FINITE, bad, NonFinite::Poison).unwrap();
        assert!(a.iter().chain(&b).all(|&x| f32::from_bits(x).is_nan()), "{bad:?}");
        assert!(record.factor.is_nan() && !record.skip());
    }
}

#[test]
fn an_error_names_the_first_and_leaves_every_bit() {
    for (bad, norm) in BAD.into_iter().zip([f32::NAN, f32::INFINITY, f32::NAN]) {
        let (mut a, mut b) = (FINITE, bad);
        let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Error);
        let outcome = clip_all(&mut [Gradient::f32(&mut a), Gradient::f32(&mut b)], clip);
        let Err(Error::NonFinite { gradient, total_norm, record: None }) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!((gradient, total_norm.to_bits() & 0x7fff_ffff), (Some(1.into()), norm.to_bits()));
        assert_eq!((bits(&[a]), bits(&[b])), (bits(&[FINITE]), bits(&[bad])));
    }
}

#[test]
fn an_error_in_one_group_leaves_the_others() {
    let (mut fine, mut bad) = ([3.0, 4.0], [f32::NAN]);
    let mut gradients = [Gradient::f32(&mut fine), Gradient::f32(&mut bad).group(1)];
    let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Error);
    assert!(matches!(
        clip_groups(&mut gradients, &[clip; 2]),
        Err(Error::NonFinite { gradient: Some(GradientId { index: 1, .. }), record: Some(1), .. })
    ));
    assert_eq!(fine, [3.0, 4.0]);
}

#[test]
fn finite_gradients_meet_no_policy() {
    let expected = clipped(FINITE, [4.0, 0.0], NonFinite::Propagate).unwrap();
    assert_eq!((expected.0.total_norm, expected.0.first_non_finite()), (5.0, None));
    for policy in [NonFinite::Skip, NonFinite::Zero, NonFinite::Poison, NonFinite::Error] {
        assert_eq!(clipped(FINITE, [4.0, 0.0], policy), Ok(expected), "{policy:?}");
    }
}

#[test]
fn a_norm_beyond_f32_meets_none() {
    let huge = [f32::MAX, -f32::MAX];
    let expected = clipped(FINITE, huge, NonFinite::Propagate).unwrap();
    assert!(!expected.0.non_finite() && expected.0.total_norm.is_infinite());
    assert_ne!(expected.2, huge.map(f32::to_bits));
    for policy in [NonFinite::Skip, NonFinite::Zero, NonFinite::Poison, NonFinite::Error] {
        assert_eq!(clipped(FINITE, huge, policy), Ok(expected), "{policy:?}");
    }
}

#[test]
fn an_infinite_norm_that_is_supplied_meets_them() {
    let clip = |policy| {
        let mut gradient = [3.0];
        let clip = Clip::by_supplied_norm(1.0).non_finite(policy);
        let record = clip_with_norm(&mut [Gradient::f32(&mut gradient)], clip, f32::INFINITY)?;
        Ok((record.skip(), record.first_non_finite(), gradient))
    };
    assert_eq!(clip(NonFinite::Skip), Ok((true, None, [3.0])));
    assert_eq!(clip(NonFinite::Propagate), Ok((false, None, [0.0])));
    let error = Error::NonFinite { gradient: None, total_norm: f32::INFINITY, record: None };
    assert_eq!(clip(NonFinite::Error), Err(error));
}

#[test]
fn norms_that_overlook_an_infinity_do_not_hide_it() {
    for p in [0.0, -1.0, f32::NEG_INFINITY] {
        let mut gradient = [2.0, f32::INFINITY];
        let clip = Clip::by_global_norm(1.0).norm_type(NormType::P(p)).non_finite(NonFinite::Skip);
        let record = clip_all(&mut [Gradient::f32(&mut gradient)], clip).unwrap()[0];
        assert!(record.total_norm.is_finite() && record.skip(), "p = {p}");
        assert_eq!(gradient, [2.0, f32::INFINITY], "p = {p}");
    }
}

#[test]
fn only_a_coefficient_writes_nothing_whatever_the_policy() {
    for policy in [NonFinite::Propagate, NonFinite::Zero, NonFinite::Poison] {
        let mut gradient = [2.0, f32::INFINITY];
        let clip = Clip::by_global_norm(1.0).non_finite(policy).loss_scale(8.0).coefficient_only();
        clip_all(&mut [Gradient::f32(&mut gradient)], clip).unwrap();
        assert_eq!(gradient, [2.0, f32::INFINITY], "{policy:?}");
    }
}

#[test]
fn a_loss_scale_is_undone_before_clipping() {
    let plain: Vec<f32> = (0..1003_u16).map(|i| f32::from(i) - 500.3).collect();
    for scale in [1024.0, 0.125] {
        // The second limit is beyond every norm: then only the scale is undone.
        for (norm_type, limit) in [NormType::L1, NormType::L2, NormType::Inf].into_iter().zip([1.0, 1e9, 3.0])
        {
            let clip = Clip::by_global_norm(limit).norm_type(norm_type);
            let (mut expected, mut scaled) =
                (plain.clone(), plain.iter().map(|x| x * scale).collect::<Vec<_>>());
            let unscaled = super::clip(&mut [&mut expected], clip).unwrap().unwrap();
            let record = super::clip(&mut [&mut scaled], clip.loss_scale(scale)).unwrap().unwrap();
            assert_eq!(bits(&[scaled]), bits(&[expected]), "{norm_type:?} of {scale}");
            let mut expected = unscaled;
            expected.factor /= scale;
            expected.factor_exponent = record.factor_exponent;
            assert_eq!(record, expected);
            let factor = f64::from(record.factor_significand) * f64::from(record.factor_exponent).exp2();
            assert_eq!(factor, record.factor.into());
        }
    }
}

#[test]
fn a_loss_scale_rescues_a_norm_beyond_f32() {
    let mut gradient = [f32::MAX, f32::MAX];
    let clip = Clip::by_global_norm(1.0).epsilon(Epsilon::None).loss_scale(1024.0);
    let record = super::clip(&mut [&mut gradient], clip).unwrap().unwrap();
    assert!(!record.non_finite() && record.total_norm.is_finite());
    assert!((reference::total_norm(&[&gradient]) - 1.0).abs() < 1e-6);
}

#[test]
fn an_epsilon_of_choice_is_added() {
    for (epsilon, coef) in [(Epsilon::None, 0.5), (Epsilon::Value(6.0), 0.25)] {
        let mut gradient = [6.0];
        clip(&mut [&mut gradient], Clip::by_global_norm(3.0).epsilon(epsilon)).unwrap();
        assert_eq!(gradient, [6.0 * coef]);
    }
}
