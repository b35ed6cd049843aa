//! Clips of each gradient by its own norm.

use super::*;
use crate::{Epsilon, NonFinite};

#[test]
fn by_norm_clips_each_gradient_by_its_own_norm() {
    let (mut a, mut b, mut none, mut within) = ([3.0, -4.0], [0.0, 12.0], [], [0.6]);
    let mut gradients = [
        Gradient::f32(&mut a),
        Gradient::f32(&mut b).group(1),
        Gradient::f32(&mut none),
        Gradient::f32(&mut within),
    ];
    let clip = |limit| Clip::by_norm(limit).epsilon(Epsilon::None);
    let records = clip_groups(&mut gradients, &[clip(1.0), clip(3.0)]).unwrap();
    let norms: Vec<f32> = records.iter().map(|record| record.total_norm).collect();
    assert_eq!(norms, [5.0, 12.0, 0.0, 0.6]);
    assert_eq!(records.iter().map(ClipRecord::clipped).collect::<Vec<_>>(), [true, true, false, false]);
    assert_eq!((a, b, within), ([3.0 * 0.2, -4.0 * 0.2], [0.0, 3.0], [0.6]));
    assert_eq!(clip_slices(&mut [&mut a], clip(1.0)).unwrap().len(), 1);
}

#[test]
fn by_norm_applies_the_policy_to_non_finite_gradients_only() {
    let (mut a, mut bad) = ([3.0, -4.0], [f32::INFINITY, 1.0]);
    let mut gradients = [Gradient::f32(&mut a), Gradient::f32(&mut bad)];
    let records = clip(&mut gradients, Clip::by_norm(1.0).non_finite(NonFinite::Zero)).unwrap();
    assert_eq!([records[0].first_non_finite(), records[1].first_non_finite()], [None, Some(1)]);
    assert!((reference::total_norm(&[&a]) - 1.0).abs() < 1e-6);
    assert_eq!(bad, [0.0, 0.0]);
}

#[test]
fn by_norm_only_undoes_the_loss_scale_of_unmeasured_gradients() {
    for limit in [0.0, 1.0] {
        let (mut a, mut out) = ([f32::NAN], [48.0]);
        let mut gradients = [Gradient::f32(&mut a), Gradient::f32(&mut out).unmeasured()];
        let records = clip(&mut gradients, Clip::by_norm(limit).loss_scale(16.0)).unwrap();
        assert_eq!(
            (records[1].factor, records[1].clipped(), records[1].total_norm),
            (1.0 / 16.0, false, 0.0)
        );
        assert_eq!(out, [3.0]);
    }
}

#[test]
fn by_rms_limits_the_root_of_the_mean_square() {
    let (mut a, mut b, mut none) = ([6.0, -6.0, 6.0, 6.0], [1.0; 9], []);
    let mut gradients = [Gradient::f32(&mut a), Gradient::f32(&mut b), Gradient::f32(&mut none)];
    let records = clip(&mut gradients, Clip::by_rms(1.5)).unwrap();
    assert_eq!(records.iter().map(|record| record.total_norm).collect::<Vec<_>>(), [12.0, 3.0, 0.0]);
    assert_eq!(a, [1.5, -1.5, 1.5, 1.5]);
    assert_eq!(b, [1.0; 9]);
    for threshold in [1.0, f32::INFINITY] {
        let clip = Clip::by_rms(threshold).epsilon(Epsilon::PyTorch);
        let records = cpu::clip(&mut [Gradient::f32(&mut [])], clip).unwrap();
        assert_eq!(records[0].factor, 1.0, "no elements, threshold {threshold}");
    }
}
