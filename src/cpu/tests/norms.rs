//! Every norm type.

use super::*;
use crate::NormType;

const PS: [f32; 11] = [2.0, 1.0, f32::INFINITY, 3.0, 1.5, 0.5, 40.0, 0.0, -1.0, -2.5, f32::NEG_INFINITY];

/// The record of these gradients under the p-norm, with a limit of 2.
fn record(gradients: &[&[f32]], p: f32) -> ClipRecord {
    let mut copies: Vec<Vec<f32>> = gradients.iter().map(|gradient| gradient.to_vec()).collect();
    let mut gradients: Vec<Gradient<'_>> = copies.iter_mut().map(|copy| Gradient::f32(copy)).collect();
    clip_all(&mut gradients, Clip::by_global_norm(2.0).norm_type(NormType::P(p))).unwrap()[0]
}

/// The norm, wherever it is.
fn norm(gradients: &[&[f32]], p: f32) -> f64 {
    let record = record(gradients, p);
    f64::from(record.norm_significand) * f64::from(record.norm_exponent).exp2()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-7 * b
}

#[test]
fn the_figures_of_pytorch() {
    let figures = [
        (0.5, 451_287.26),
        (1.5, 1_179.357_405),
        (2.0, 581.678_605),
        (4.0, 212.792_402),
        (f32::INFINITY, 100.0),
    ];
    for (p, figure) in figures {
        let mut a: Vec<f32> = (1..=100_u8).map(f32::from).collect();
        let mut b = vec![1.0 / 1000.0; 10];
        let before = [a.clone(), b.clone()];
        let norm_type = NormType::P(p);
        let record =
            clip(&mut [&mut a, &mut b], Clip::by_global_norm(2.0).norm_type(norm_type)).unwrap().unwrap();
        assert!((f64::from(record.total_norm) / figure - 1.0).abs() < 1e-7, "p = {p}: {}", record.total_norm);
        assert!((reference::norm(&[&a, &b], norm_type) - 2.0).abs() < 2e-6, "p = {p}");
        let scaled = before.map(|gradient| gradient.iter().map(|x| x * record.factor).collect::<Vec<_>>());
        assert_eq!([a, b], scaled, "p = {p}");
    }
}

#[test]
fn agree_with_the_reference() {
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
            let found = norm(&[&[magnitude; 3], &[-magnitude]], p);
            assert!(near(found, expected), "p = {p} of {magnitude:e}: {found:e} but {expected:e}");
        }
    }
    // Of what differs by more than the range of f64 once it is raised, the larger or smaller is all that counts.
    assert_eq!(norm(&[&[1e30, 1e-40], &[1e-45]], 9.0), 1e30_f32.into());
    assert_eq!(norm(&[&[1e30, 1e-40], &[1e-30]], -9.0), 1e-40_f32.into());
}

#[test]
fn pieces_of_different_magnitude_are_put_together() {
    // Long enough to be several pieces, each of which has another unit.
    let gradient: Vec<f32> = (0..100_000_u32).map(|i| (i / 20_000 + 1) as f32).collect();
    for (p, sum) in [(3.0, 225.0_f64), (-1.0, 137.0 / 60.0)] {
        let expected = (20_000.0 * sum).powf(1.0 / f64::from(p));
        assert!(near(norm(&[&gradient], p), expected), "p = {p}: {} but {expected}", norm(&[&gradient], p));
    }
}

#[test]
fn zero_counts_gradients() {
    assert_eq!(norm(&[&[3.0, 4.0], &[12.0]], 0.0), 2.0);
    assert_eq!(norm(&[&[0.0, -0.0], &[], &[0.0, 1e-45], &[f32::NAN]], 0.0), 2.0);
    let long = vec![1.0; 600_000];
    assert_eq!(norm(&[&long, &long, &[0.0]], 0.0), 2.0);
}

#[test]
fn an_exact_zero_settles_a_negative_one() {
    for p in [-1.0, -2.5, f32::NEG_INFINITY] {
        assert_eq!(norm(&[&[3.0, 4.0], &[5.0, -0.0]], p), 0.0, "p = {p}");
        assert_eq!(record(&[&[3.0, 4.0], &[5.0, -0.0]], p).clip_coef, 1.0, "p = {p}");
    }
    assert_eq!(norm(&[&[3.0, -4.0], &[12.0]], -1.0), 1.5);
    assert_eq!(norm(&[&[3.0, -4.0], &[12.0]], f32::NEG_INFINITY), 3.0);
}

#[test]
fn nothing_adds_nothing() {
    for p in PS {
        assert_eq!(norm(&[], p), 0.0, "p = {p}");
        assert_eq!(norm(&[&[], &[]], p), 0.0, "p = {p}");
        assert_eq!(norm(&[&[], &[3.0], &[]], p), if p == 0.0 { 1.0 } else { 3.0 }, "p = {p}");
    }
}

#[test]
fn what_is_not_finite_counts_as_pytorch_counts_it() {
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

        let nothing_else = record(&[&[f32::INFINITY; 3]], p);
        assert_eq!(nothing_else.total_norm, if p == 0.0 { 1.0 } else { f32::INFINITY }, "p = {p}");
    }
}

#[test]
fn the_largest_magnitude_is_known_whatever_the_norm() {
    for p in PS {
        assert_eq!(record(&[&[3.0, 1e-3], &[-7.0, 0.0]], p).max_magnitude, 7.0, "p = {p}");
    }
}
