//! Loss scale and epsilon.

use super::*;
use crate::{Epsilon, NormType};

#[test]
fn a_loss_scale_is_undone_before_clipping() {
    let plain: Vec<f32> = (0..1003_u16).map(|i| f32::from(i) - 500.3).collect();
    for scale in [1024.0, 0.125] {
        // The second limit exceeds every norm, so that only the scale is removed.
        for (norm_type, limit) in [NormType::L1, NormType::L2, NormType::Inf].into_iter().zip([1.0, 1e9, 3.0])
        {
            let clip = Clip::by_global_norm(limit).norm_type(norm_type);
            let (mut expected, mut scaled) =
                (plain.clone(), plain.iter().map(|x| x * scale).collect::<Vec<_>>());
            let unscaled = clip_slices(&mut [&mut expected], clip).unwrap()[0];
            let record = clip_slices(&mut [&mut scaled], clip.loss_scale(scale)).unwrap()[0];
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
fn a_loss_scale_brings_a_norm_back_into_f32() {
    let mut gradient = [f32::MAX, f32::MAX];
    let clip = Clip::by_global_norm(1.0).epsilon(Epsilon::None).loss_scale(1024.0);
    let record = clip_slices(&mut [&mut gradient], clip).unwrap()[0];
    assert!(!record.non_finite() && record.total_norm.is_finite());
    assert!((reference::total_norm(&[&gradient]) - 1.0).abs() < 1e-6);
}

#[test]
fn a_custom_epsilon_is_added_to_the_norm() {
    for (epsilon, coef) in [(Epsilon::None, 0.5), (Epsilon::Value(6.0), 0.25)] {
        let mut gradient = [6.0];
        clip_slices(&mut [&mut gradient], Clip::by_global_norm(3.0).epsilon(epsilon)).unwrap();
        assert_eq!(gradient, [6.0 * coef]);
    }
}
