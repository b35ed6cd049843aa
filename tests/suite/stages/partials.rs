//! Stage `partials`: the accuracy of long sums, and the order of additions in a tile.

use gradclip::{Clip, NormType, reference};

use crate::common::numbers::{noise, slices};
use crate::common::placement::{Placement, extents};
use crate::gpu;

/// Returns the relative error of the norm on the GPU path.
fn error_of(gradient: Vec<f32>, expected: f64) -> f64 {
    let clip = Clip::by_global_norm(1.0).coefficient_only();
    let gradients = [gradient];
    let outcome = gpu().clip(&Placement::separate(&extents(&gradients)), &gradients, clip);
    (f64::from(outcome.record().total_norm) / expected - 1.0).abs()
}

/// The worst case: all rounding errors have the same sign.
#[test]
fn a_long_constant_gradient_has_an_accurate_norm() {
    for exponent in [20, 24, 26] {
        let len = 1 << exponent;
        let error = error_of(vec![0.1; len], f64::from(0.1_f32) * (len as f64).sqrt());
        assert!(error <= 1e-6, "{error:e} for 2^{exponent} elements");
    }
}

#[test]
fn a_long_random_gradient_has_an_accurate_norm() {
    for (seed, exponent) in [(1, 20), (2, 24), (3, 26)] {
        let gradients = vec![noise(seed, 1 << exponent)];
        let expected = reference::total_norm(&slices(&gradients));
        let error = error_of(gradients.concat(), expected);
        assert!(error <= 3e-7, "{error:e} for 2^{exponent} elements");
    }
}

/// Small terms must not vanish in a sum that starts with a large one.
#[test]
fn small_elements_behind_a_large_one_are_counted() {
    let len = 1 << 22;
    let gradient: Vec<_> = std::iter::once(4096.0).chain(std::iter::repeat_n(1.0, len)).collect();
    let expected = (4096.0_f64.powi(2) + len as f64).sqrt();
    let error = error_of(gradient, expected);
    assert!(error <= 3e-7, "{error:e}");
}

/// Beyond certain magnitudes the shader scales the elements before it squares and adds them. It must keep the order of
/// additions: otherwise the last bits of the norm would jump there.
#[test]
fn the_order_of_additions_is_the_same_with_and_without_scaling() {
    // All invocations add the same numbers, so that a different order changes the result in all of them.
    const ALIKE: usize = 1024;
    let bounds = [(NormType::L1, -80), (NormType::L1, 90), (NormType::L2, -40), (NormType::L2, 45)];
    let lens = [4096, 4099, 3 * 4096 + 700];
    for (norm_type, bound) in bounds {
        let clip = Clip::by_global_norm(1.0).norm_type(norm_type).coefficient_only();
        let norm = |seed: u32, exponent: i32| {
            let numbers =
                noise(seed, 100).into_iter().map(|x| x * x * 2.0_f32.powi(exponent)).collect::<Vec<_>>();
            let gradients = lens.map(|len| (0..len).map(|index| numbers[(len + index) / ALIKE]).collect());
            let outcome = gpu().clip(&Placement::separate(&extents(&gradients)), &gradients, clip);
            outcome.record().total_norm / 2.0_f32.powi(exponent)
        };
        for seed in 0..32 {
            // All tiles, some and none are below the bound.
            let norms = [-4, 0, 1, 2, 4].map(|above| norm(seed, bound + above));
            assert!(
                norms.iter().all(|norm| *norm == norms[0]),
                "{norm_type:?} near 2^{bound}, seed {seed}: {norms:?}"
            );
        }
    }
}
