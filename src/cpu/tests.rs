//! What every clip in main memory promises.

mod groups;
#[cfg(target_arch = "x86_64")]
mod modes;
mod narrow;
mod norms;
mod policies;

use super::*;
use crate::reference;

fn bits(gradients: &[impl AsRef<[f32]>]) -> Vec<u32> {
    gradients.iter().flat_map(AsRef::as_ref).map(|x| x.to_bits()).collect()
}

/// The record of a clip of one gradient by global norm to `max_norm`, and what became of the gradient.
fn clipped<const N: usize>(mut gradient: [f32; N], max_norm: f32) -> (ClipRecord, [f32; N]) {
    let record = clip(&mut [&mut gradient], Clip::by_global_norm(max_norm)).unwrap().unwrap();
    (record, gradient)
}

#[test]
fn clips_to_the_joint_norm() {
    let (mut a, mut b, mut none) = ([3.0, 0.0], [-4.0], []);
    let record = clip(&mut [&mut a, &mut none, &mut b], Clip::by_global_norm(2.5)).unwrap().unwrap();
    assert_eq!((record.total_norm, record.max_magnitude), (5.0, 4.0));
    assert!(record.clipped() && !record.non_finite());
    assert_eq!((a, b), ([3.0 * record.clip_coef, 0.0], [-4.0 * record.clip_coef]));
    assert!((reference::total_norm(&[&a, &b]) - 2.5).abs() < 2e-6);
}

#[test]
fn leaves_what_is_within_the_limit() {
    let (record, gradient) = clipped([3.0, -0.0, 4.0, 1e-45], 5.1);
    assert_eq!(record.clip_coef, 1.0);
    assert!(!record.clipped());
    assert_eq!(bits(&[gradient]), bits(&[[3.0, -0.0, 4.0, 1e-45]]));
}

#[test]
fn measures_without_writing() {
    let mut gradient = [3.0, 4.0];
    let record = measure(&[&gradient], 1.0).unwrap();
    let only = clip(&mut [&mut gradient], Clip::by_global_norm(1.0).coefficient_only()).unwrap();
    assert_eq!(only, Some(record));
    assert_eq!(gradient, [3.0, 4.0]);
    assert_eq!(clipped(gradient, 1.0).0, record);
    assert!(record.clipped());
}

#[test]
fn squares_neither_overflow_nor_vanish() {
    let (record, gradient) = clipped([1e20, 1e20], 1.0);
    assert_eq!(record.total_norm, 1.414_213_6e20);
    assert!((reference::total_norm(&[&gradient]) - 1.0).abs() < 1e-6);
    assert_eq!(total_norm(&[&[1e-30]]), 1e-30);
    assert_eq!(total_norm(&[&[1e-45]]), 1e-45);
    assert_eq!(total_norm(&[&[1e-45; 9]]), 3.0 * 1e-45);
    assert_eq!(total_norm(&[&[f32::MAX]]), f32::MAX);
}

#[test]
fn a_norm_beyond_f32_is_a_norm_all_the_same() {
    let (record, gradient) = clipped([3e38, 3e38, -3e38, 3e38], 1.0);
    assert!(record.clipped() && !record.non_finite());
    assert_eq!((record.total_norm, record.max_magnitude), (f32::INFINITY, 3e38));
    assert!((record.norm() / 6e38 - 1.0).abs() < 1e-7);
    assert_eq!(gradient.map(|x| (x * 1e6).round() / 1e6), [0.5, 0.5, -0.5, 0.5]);
    // A coefficient that f32 takes for 0.
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
fn nothing_has_norm_zero() {
    for gradients in [&mut [][..], &mut [&mut [][..], &mut []]] {
        let record = clip(gradients, Clip::by_global_norm(1.0)).unwrap().unwrap();
        assert_eq!((record.total_norm, record.max_magnitude, record.clip_coef), (0.0, 0.0, 1.0));
        assert_eq!(clip(gradients, Clip::by_value(1.0)), Ok(None));
    }
}

#[test]
fn a_limit_of_zero_zeroes_and_an_infinite_one_leaves() {
    assert_eq!(clipped([3.0, 4.0], 0.0).1, [0.0, 0.0]);
    assert_eq!(clipped([3.0, 4.0], f32::INFINITY).1, [3.0, 4.0]);
}

#[test]
fn many_small_gradients_are_one() {
    let whole: Vec<f32> = (0..2000 * 613_u64).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 1000.0).collect();
    let mut parts = whole.clone();
    let mut parts: Vec<&mut [f32]> = parts.chunks_mut(613).collect();
    let record = clip(&mut parts, Clip::by_global_norm(1.0)).unwrap().unwrap();
    assert_eq!(record.total_norm, reference::scale(1.0, reference::total_norm(&[&whole])));
    assert_eq!(bits(&parts), bits(&[whole.iter().map(|x| x * record.clip_coef).collect::<Vec<_>>()]));

    clip(&mut parts, Clip::by_value(1e-4)).unwrap();
    let clamped = whole.iter().map(|x| reference::clamp(x * record.clip_coef, -1e-4, 1e-4));
    assert_eq!(bits(&parts), bits(&[clamped.collect::<Vec<_>>()]));
}

#[test]
fn a_long_constant_gradient_keeps_its_precision() {
    assert_eq!(total_norm(&[&vec![0.1; 1 << 24]]), 4096.0 * 0.1);
}

#[test]
fn errors_come_before_anything_is_written() {
    let mut gradient = [9.0];
    let negative = Error::MaxNorm { given: -1.0 };
    assert_eq!(clip(&mut [&mut gradient], Clip::by_global_norm(-1.0)), Err(negative.clone()));
    assert_eq!(measure(&[&gradient], -1.0), Err(negative));
    assert_eq!(clip(&mut [&mut gradient], Clip::by_value(-2.0)), Err(Error::ClipValue { given: -2.0 }));
    assert_eq!(gradient, [9.0]);
}
