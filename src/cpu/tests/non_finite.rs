//! Policies for non-finite gradients.

use super::*;
use crate::{GradientId, NonFinite, NormType};

/// Clips two gradients to a global norm of 1. Returns the record and the bits of the clipped gradients.
fn clipped(
    mut a: [f32; 3],
    mut b: [f32; 2],
    policy: NonFinite,
) -> Result<(ClipRecord, [u32; 3], [u32; 2]), Error> {
    let clip = Clip::by_global_norm(1.0).non_finite(policy);
    let record = cpu::clip(&mut [Gradient::f32(&mut a), Gradient::f32(&mut b)], clip)?[0];
    Ok((record, a.map(f32::to_bits), b.map(f32::to_bits)))
}

const FINITE: [f32; 3] = [3.0, -0.0, 1e-45];
const BAD: [[f32; 2]; 3] = [[-4.0, f32::NAN], [f32::NEG_INFINITY, 2.0], [-f32::NAN, f32::INFINITY]];

#[test]
fn skip_changes_no_bit() {
    for bad in BAD {
        let (record, a, b) = clipped(FINITE, bad, NonFinite::Skip).unwrap();
        assert_eq!((a, b), (FINITE.map(f32::to_bits), bad.map(f32::to_bits)));
        assert!(record.skip() && record.non_finite() && !record.zeroed());
        assert_eq!((record.factor, record.first_non_finite()), (1.0, Some(1)));
    }
}

#[test]
fn zero_writes_positive_zeros() {
    for bad in BAD {
        let (record, a, b) = clipped(FINITE, bad, NonFinite::Zero).unwrap();
        assert_eq!((a, b), ([0; 3], [0; 2]));
        assert!(record.zeroed() && !record.skip());
        assert_eq!((record.factor, record.first_non_finite()), (0.0, Some(1)));
    }
}

#[test]
fn poison_makes_every_element_nan() {
    for bad in BAD {
        let (record, a, b) = clipped(FINITE, bad, NonFinite::Poison).unwrap();
        assert!(a.iter().chain(&b).all(|&x| f32::from_bits(x).is_nan()), "{bad:?}");
        assert!(record.factor.is_nan() && !record.skip());
    }
}

#[test]
fn error_names_the_first_gradient_and_changes_no_bit() {
    for (bad, norm) in BAD.into_iter().zip([f32::NAN, f32::INFINITY, f32::NAN]) {
        let (mut a, mut b) = (FINITE, bad);
        let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Error);
        let outcome = cpu::clip(&mut [Gradient::f32(&mut a), Gradient::f32(&mut b)], clip);
        let Err(Error::NonFinite { gradient, total_norm, record: None }) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!((gradient, total_norm.to_bits() & 0x7fff_ffff), (Some(1.into()), norm.to_bits()));
        assert_eq!((bits(&[a]), bits(&[b])), (bits(&[FINITE]), bits(&[bad])));
    }
}

#[test]
fn error_in_one_group_leaves_the_others_unchanged() {
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
fn policies_ignore_finite_gradients() {
    let expected = clipped(FINITE, [4.0, 0.0], NonFinite::Propagate).unwrap();
    assert_eq!((expected.0.total_norm, expected.0.first_non_finite()), (5.0, None));
    for policy in [NonFinite::Skip, NonFinite::Zero, NonFinite::Poison, NonFinite::Error] {
        assert_eq!(clipped(FINITE, [4.0, 0.0], policy), Ok(expected), "{policy:?}");
    }
}

#[test]
fn policies_ignore_a_finite_norm_beyond_f32() {
    let huge = [f32::MAX, -f32::MAX];
    let expected = clipped(FINITE, huge, NonFinite::Propagate).unwrap();
    assert!(!expected.0.non_finite() && expected.0.total_norm.is_infinite());
    assert_ne!(expected.2, huge.map(f32::to_bits));
    for policy in [NonFinite::Skip, NonFinite::Zero, NonFinite::Poison, NonFinite::Error] {
        assert_eq!(clipped(FINITE, huge, policy), Ok(expected), "{policy:?}");
    }
}

#[test]
fn policies_apply_to_an_infinite_supplied_norm() {
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
fn policies_apply_if_the_norm_of_non_finite_gradients_is_finite() {
    for p in [0.0, -1.0, f32::NEG_INFINITY] {
        let mut gradient = [2.0, f32::INFINITY];
        let clip = Clip::by_global_norm(1.0).norm_type(NormType::P(p)).non_finite(NonFinite::Skip);
        let record = cpu::clip(&mut [Gradient::f32(&mut gradient)], clip).unwrap()[0];
        assert!(record.total_norm.is_finite() && record.skip(), "p = {p}");
        assert_eq!(gradient, [2.0, f32::INFINITY], "p = {p}");
    }
}

#[test]
fn coefficient_only_writes_nothing_under_any_policy() {
    for policy in [NonFinite::Propagate, NonFinite::Zero, NonFinite::Poison] {
        let mut gradient = [2.0, f32::INFINITY];
        let clip = Clip::by_global_norm(1.0).non_finite(policy).loss_scale(8.0).coefficient_only();
        cpu::clip(&mut [Gradient::f32(&mut gradient)], clip).unwrap();
        assert_eq!(gradient, [2.0, f32::INFINITY], "{policy:?}");
    }
}
