//! Tests of the public functions of the CPU path.

#[cfg(target_arch = "x86_64")]
mod float_modes;
mod groups;
mod half_precision;
mod loss_scale;
mod measurement;
mod non_finite;
mod norm_types;
mod per_gradient;
mod unmeasured;

use super::*;
use crate::{cpu, reference};

fn bits(gradients: &[impl AsRef<[f32]>]) -> Vec<u32> {
    gradients.iter().flat_map(AsRef::as_ref).map(|x| x.to_bits()).collect()
}

/// Clips f32 slices, and returns the records.
fn clip_slices(gradients: &mut [impl AsMut<[f32]>], clip: Clip) -> Result<Vec<ClipRecord>, Error> {
    super::clip(&mut as_gradients(gradients), clip)
}

/// Clips one gradient by its L2 norm. Returns the record and the clipped gradient.
fn clipped<const N: usize>(mut gradient: [f32; N], max_norm: f32) -> (ClipRecord, [f32; N]) {
    let record = clip_grad_norm(&mut [&mut gradient], max_norm).unwrap();
    (record, gradient)
}

#[test]
fn clips_to_the_joint_norm() {
    let (mut a, mut b, mut none) = ([3.0, 0.0], [-4.0], []);
    let record = clip_grad_norm(&mut [&mut a[..], &mut none, &mut b], 2.5).unwrap();
    assert_eq!((record.total_norm, record.max_magnitude), (5.0, 4.0));
    assert!(record.clipped() && !record.non_finite());
    assert_eq!((a, b), ([3.0 * record.clip_coef, 0.0], [-4.0 * record.clip_coef]));
    assert!((reference::total_norm(&[&a, &b]) - 2.5).abs() < 2e-6);
}

#[test]
fn vectors_and_slices_are_clipped_alike() {
    let (mut vectors, mut arrays) = (vec![vec![3.0, 0.0], vec![-4.0]], ([3.0, 0.0], [-4.0]));
    let mut slices = [&mut arrays.0[..], &mut arrays.1];
    assert_eq!(measure(&vectors, 1.0), measure(&slices, 1.0));
    assert_eq!(clip_grad_norm(&mut vectors, 1.0), clip_grad_norm(&mut slices, 1.0));
    assert_eq!(vectors, slices);
    assert_eq!(total_norm(&vectors), total_norm(&slices));
    clip_grad_value(&mut vectors, 0.7).unwrap();
    clip_grad_value(&mut slices, 0.7).unwrap();
    assert_eq!(vectors, slices);
    assert_eq!(vectors[1], [-0.7]);
}

#[test]
fn gradients_within_the_limit_are_unchanged() {
    let (record, gradient) = clipped([3.0, -0.0, 4.0, 1e-45], 5.1);
    assert_eq!(record.clip_coef, 1.0);
    assert!(!record.clipped());
    assert_eq!(bits(&[gradient]), bits(&[[3.0, -0.0, 4.0, 1e-45]]));
}

#[test]
fn measures_without_writing() {
    let mut gradient = [3.0, 4.0];
    let record = measure(&[&gradient], 1.0).unwrap();
    let records = clip_slices(&mut [&mut gradient], Clip::by_global_norm(1.0).coefficient_only());
    assert_eq!(records, Ok(vec![record]));
    assert_eq!(gradient, [3.0, 4.0]);
    assert_eq!(clipped(gradient, 1.0).0, record);
    assert!(record.clipped());
}

#[test]
fn squares_neither_overflow_nor_underflow() {
    let (record, gradient) = clipped([1e20, 1e20], 1.0);
    assert_eq!(record.total_norm, 1.414_213_6e20);
    assert!((reference::total_norm(&[&gradient]) - 1.0).abs() < 1e-6);
    assert_eq!(total_norm(&[&[1e-30]]), 1e-30);
    assert_eq!(total_norm(&[&[1e-45]]), 1e-45);
    assert_eq!(total_norm(&[&[1e-45; 9]]), 3.0 * 1e-45);
    assert_eq!(total_norm(&[&[f32::MAX]]), f32::MAX);
}

#[test]
fn clips_by_a_norm_beyond_f32() {
    let (record, gradient) = clipped([3e38, 3e38, -3e38, 3e38], 1.0);
    assert!(record.clipped() && !record.non_finite());
    assert_eq!((record.total_norm, record.max_magnitude), (f32::INFINITY, 3e38));
    assert!((record.norm() / 6e38 - 1.0).abs() < 1e-7);
    assert_eq!(gradient.map(|x| (x * 1e6).round() / 1e6), [0.5, 0.5, -0.5, 0.5]);
    // The coefficient underflows to 0 in f32.
    let (record, gradient) = clipped([f32::MAX; 4], 1e-20);
    assert_eq!((record.clip_coef, record.factor), (0.0, 0.0));
    assert!(gradient.iter().all(|x| (x / 5e-21 - 1.0).abs() < 1e-6), "{gradient:?}");
}

#[test]
fn infinities_zero_the_rest_and_become_nan() {
    let (record, gradient) = clipped([1.0, f32::NEG_INFINITY, -2.0], 1.0);
    assert_eq!((record.total_norm, record.max_magnitude), (f32::INFINITY, f32::INFINITY));
    assert!(record.clipped() && record.non_finite());
    assert!(gradient[1].is_nan());
    assert_eq!(bits(&[[gradient[0], gradient[2]]]), bits(&[[0.0, -0.0]]));
}

#[test]
fn a_nan_poisons_everything() {
    let (record, gradient) = clipped([1.0, f32::INFINITY, -f32::NAN, 0.0], 1.0);
    assert!(record.total_norm.is_nan() && record.max_magnitude.is_nan() && record.clip_coef.is_nan());
    assert!(record.clipped() && record.non_finite());
    assert!(gradient.iter().all(|x| x.is_nan()));
}

#[test]
fn the_norm_of_no_elements_is_zero() {
    for gradients in [&mut [][..], &mut [&mut [][..], &mut []]] {
        let record = clip_grad_norm(gradients, 1.0).unwrap();
        assert_eq!((record.total_norm, record.max_magnitude, record.clip_coef), (0.0, 0.0, 1.0));
        assert_eq!(clip_slices(gradients, Clip::by_value(1.0)), Ok(vec![]));
    }
}

#[test]
fn zero_and_infinite_limits() {
    assert_eq!(clipped([3.0, 4.0], 0.0).1, [0.0, 0.0]);
    assert_eq!(clipped([3.0, 4.0], f32::INFINITY).1, [3.0, 4.0]);
}

#[test]
fn many_small_gradients_have_the_norm_of_one_large_gradient() {
    let whole: Vec<f32> = (0..2000 * 613_u64).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 1000.0).collect();
    let mut parts = whole.clone();
    let mut parts: Vec<&mut [f32]> = parts.chunks_mut(613).collect();
    let record = clip_grad_norm(&mut parts, 1.0).unwrap();
    assert_eq!(record.total_norm, reference::scale(1.0, reference::total_norm(&[&whole])));
    assert_eq!(bits(&parts), bits(&[whole.iter().map(|x| x * record.clip_coef).collect::<Vec<_>>()]));

    clip_grad_value(&mut parts, 1e-4).unwrap();
    let clamped = whole.iter().map(|x| reference::clamp(x * record.clip_coef, -1e-4, 1e-4));
    assert_eq!(bits(&parts), bits(&[clamped.collect::<Vec<_>>()]));
}

#[test]
fn a_long_constant_gradient_keeps_its_precision() {
    assert_eq!(total_norm(&[&vec![0.1; 1 << 24]]), 4096.0 * 0.1);
}

#[test]
fn errors_leave_gradients_untouched() {
    let mut gradient = [9.0];
    let negative = Error::MaxNorm { given: -1.0 };
    assert_eq!(clip_grad_norm(&mut [&mut gradient], -1.0), Err(negative.clone()));
    assert_eq!(measure(&[&gradient], -1.0), Err(negative));
    assert_eq!(clip_grad_value(&mut [&mut gradient], -2.0), Err(Error::ClipValue { given: -2.0 }));
    assert_eq!(gradient, [9.0]);
}
