//! Norm types.

use super::*;
use crate::NormType;

const PS: [f32; 11] = [2.0, 1.0, f32::INFINITY, 3.0, 1.5, 0.5, 40.0, 0.0, -1.0, -2.5, f32::NEG_INFINITY];

/// Clips copies of the gradients to a global p-norm of 2. Returns the record.
fn record(gradients: &[&[f32]], p: f32) -> ClipRecord {
    let mut copies: Vec<Vec<f32>> = gradients.iter().map(|gradient| gradient.to_vec()).collect();
    let mut gradients: Vec<Gradient<'_>> = copies.iter_mut().map(|copy| Gradient::f32(copy)).collect();
    clip(&mut gradients, Clip::by_global_norm(2.0).norm_type(NormType::P(p))).unwrap()[0]
}

/// Returns the global p-norm, which may exceed f32.
fn norm(gradients: &[&[f32]], p: f32) -> f64 {
    let record = record(gradients, p);
    f64::from(record.norm_significand) * f64::from(record.norm_exponent).exp2()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-7 * b
}

#[test]
fn agrees_with_pytorch() {
    let norms = [
        (0.5, 451_287.26),
        (1.5, 1_179.357_405),
        (2.0, 581.678_605),
        (4.0, 212.792_402),
        (f32::INFINITY, 100.0),
    ];
    for (p, expected) in norms {
        let mut a: Vec<f32> = (1..=100_u8).map(f32::from).collect();
        let mut b = vec![1.0 / 1000.0; 10];
        let before = [a.clone(), b.clone()];
        let norm_type = NormType::P(p);
        let clip = Clip::by_global_norm(2.0).norm_type(norm_type);
        let record = clip_slices(&mut [&mut a, &mut b], clip).unwrap()[0];
        assert!(
            (f64::from(record.total_norm) / expected - 1.0).abs() < 1e-7,
            "p = {p}: {}",
            record.total_norm
        );
        assert!((reference::norm(&[&a, &b], norm_type) - 2.0).abs() < 2e-6, "p = {p}");
        let scaled = before.map(|gradient| gradient.iter().map(|x| x * record.factor).collect::<Vec<_>>());
        assert_eq!([a, b], scaled, "p = {p}");
    }
}

#[test]
fn agrees_with_the_reference() {
    let number = |i: u64| ((i * 7919 % 2003) as f32 - 1001.0) * 1.1_f32.powi((i % 60) as i32 - 30) + 0.3;
    let numbers: Vec<f32> = (0..70_000).map(number).collect();
    let gradients = [&numbers[..3], &[], &numbers[3..40_000], &numbers[40_000..]];
    for p in PS {
        let expected = reference::norm(&gradients, NormType::P(p));
        assert!(near(norm(&gradients, p), expected), "p = {p}: {} but {expected}", norm(&gradients, p));
    }
}

#[test]
fn powers_stay_in_range() {
    for magnitude in [1e30_f32, 1e-40, 1e-45, f32::MAX] {
        for p in [1.0, 2.0, 3.0, 0.5, 40.0, 1000.0, -1.0, -40.0] {
            let expected = f64::from(magnitude) * 4.0_f64.powf(1.0 / f64::from(p));
            let actual = norm(&[&[magnitude; 3], &[-magnitude]], p);
            assert!(near(actual, expected), "p = {p} of {magnitude:e}: {actual:e} but {expected:e}");
        }
    }
    // If powers differ by more than the range of f64, the dominant magnitude is the norm.
    assert_eq!(norm(&[&[1e30, 1e-40], &[1e-45]], 9.0), 1e30_f32.into());
    assert_eq!(norm(&[&[1e30, 1e-40], &[1e-30]], -9.0), 1e-40_f32.into());
}

#[test]
fn combines_chunks_with_different_scales() {
    // Several chunks, each with a different scale.
    let gradient: Vec<f32> = (0..100_000_u32).map(|i| (i / 20_000 + 1) as f32).collect();
    for (p, sum) in [(3.0, 225.0_f64), (-1.0, 137.0 / 60.0)] {
        let expected = (20_000.0 * sum).powf(1.0 / f64::from(p));
        assert!(near(norm(&[&gradient], p), expected), "p = {p}: {} but {expected}", norm(&[&gradient], p));
    }
}

#[test]
fn zero_norm_counts_gradients() {
    assert_eq!(norm(&[&[3.0, 4.0], &[12.0]], 0.0), 2.0);
    assert_eq!(norm(&[&[0.0, -0.0], &[], &[0.0, 1e-45], &[f32::NAN]], 0.0), 2.0);
    let long = vec![1.0; 600_000];
    assert_eq!(norm(&[&long, &long, &[0.0]], 0.0), 2.0);
}

#[test]
fn a_zero_element_makes_a_negative_norm_zero() {
    for p in [-1.0, -2.5, f32::NEG_INFINITY] {
        assert_eq!(norm(&[&[3.0, 4.0], &[5.0, -0.0]], p), 0.0, "p = {p}");
        assert_eq!(record(&[&[3.0, 4.0], &[5.0, -0.0]], p).clip_coef, 1.0, "p = {p}");
    }
    assert_eq!(norm(&[&[3.0, -4.0], &[12.0]], -1.0), 1.5);
    assert_eq!(norm(&[&[3.0, -4.0], &[12.0]], f32::NEG_INFINITY), 3.0);
}

#[test]
fn empty_gradients_do_not_change_the_norm() {
    for p in PS {
        assert_eq!(norm(&[], p), 0.0, "p = {p}");
        assert_eq!(norm(&[&[], &[]], p), 0.0, "p = {p}");
        assert_eq!(norm(&[&[], &[3.0], &[]], p), if p == 0.0 { 1.0 } else { 3.0 }, "p = {p}");
    }
}

#[test]
fn non_finite_elements_count_as_in_pytorch() {
    for p in PS {
        let nan = record(&[&[2.0], &[0.0, -f32::NAN], &[f32::INFINITY]], p);
        assert_eq!(nan.total_norm.is_nan(), p != 0.0, "p = {p}");
        assert!(nan.max_magnitude.is_nan(), "p = {p}");
        assert_eq!((nan.non_finite(), nan.first_non_finite()), (true, Some(1)), "p = {p}");

        let infinite = record(&[&[2.0], &[5.0], &[f32::NEG_INFINITY]], p);
        let expected = match p {
            0.0 => 3.0,
            _ if p > 0.0 => f64::INFINITY,
            _ => reference::norm(&[&[2.0], &[5.0]], NormType::P(p)),
        };
        assert_eq!(f64::from(infinite.total_norm), f64::from(reference::scale(1.0, expected)), "p = {p}");
        assert_eq!(
            (infinite.max_magnitude, infinite.first_non_finite()),
            (f32::INFINITY, Some(2)),
            "p = {p}"
        );
        assert!(infinite.non_finite(), "p = {p}");

        let only_infinities = record(&[&[f32::INFINITY; 3]], p);
        assert_eq!(only_infinities.total_norm, if p == 0.0 { 1.0 } else { f32::INFINITY }, "p = {p}");
    }
}

#[test]
fn max_magnitude_does_not_depend_on_the_norm_type() {
    for p in PS {
        assert_eq!(record(&[&[3.0, 1e-3], &[-7.0, 0.0]], p).max_magnitude, 7.0, "p = {p}");
    }
}
