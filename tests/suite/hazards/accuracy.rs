//! Long sums.

use gradclip::{Clip, reference};

use crate::common::noise;
use crate::gpu;
use crate::words::{Placement, slices};

/// The relative error of the norm on the GPU path.
fn error_of(gradient: Vec<f32>, expected: f64) -> f64 {
    let clip = Clip::by_global_norm(1.0).coefficient_only();
    let outcome = gpu().clip(&Placement::separate(&[gradient.len()]), &[gradient], clip).unwrap();
    (f64::from(outcome.record.unwrap().total_norm) / expected - 1.0).abs()
}

/// The worst case: all errors of rounding have one sign.
#[test]
fn a_constant_gradient() {
    for exponent in [20, 24, 26] {
        let len = 1 << exponent;
        let error = error_of(vec![0.1; len], f64::from(0.1_f32) * (len as f64).sqrt());
        assert!(error <= 1e-6, "{error:e} for 2^{exponent} elements");
    }
}

#[test]
fn a_random_gradient() {
    for (seed, exponent) in [(1, 20), (2, 24), (3, 26)] {
        let gradients = vec![noise(seed, 1 << exponent)];
        let expected = reference::total_norm(&slices(&gradients));
        let error = error_of(gradients.concat(), expected);
        assert!(error <= 3e-7, "{error:e} for 2^{exponent} elements");
    }
}

/// What is small must not vanish behind what is large and comes first.
#[test]
fn a_large_element_before_many_small_ones() {
    let len = 1 << 22;
    let gradient: Vec<_> = std::iter::once(4096.0).chain(std::iter::repeat_n(1.0, len)).collect();
    let expected = (4096.0_f64.powi(2) + len as f64).sqrt();
    let error = error_of(gradient, expected);
    assert!(error <= 3e-7, "{error:e}");
}
