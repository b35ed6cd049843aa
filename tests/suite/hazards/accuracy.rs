//! Long sums.

use gradclip::{Clip, NormType, reference};

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

/// Where magnitudes leave the range that can be summed up as it is, a shader scales them first. It must add the same terms in
/// the same order, or a norm would jump in its last bits there.
#[test]
fn the_same_additions_on_both_sides_of_where_scaling_begins() {
    // One number for a vector of all invocations: what another order rounds otherwise, it then does in all of them.
    const ALIKE: usize = 1024;
    let bounds = [(NormType::L1, -80), (NormType::L1, 90), (NormType::L2, -40), (NormType::L2, 45)];
    let lens = [4096, 4099, 3 * 4096 + 700];
    for (norm_type, bound) in bounds {
        let clip = Clip::by_global_norm(1.0).norm_type(norm_type).coefficient_only();
        let norm = |seed: u32, exponent: i32| {
            let numbers =
                noise(seed, 100).into_iter().map(|x| x * x * 2.0_f32.powi(exponent)).collect::<Vec<_>>();
            let gradients = lens.map(|len| (0..len).map(|index| numbers[(len + index) / ALIKE]).collect());
            let outcome = gpu().clip(&Placement::separate(&lens), &gradients, clip).unwrap();
            outcome.record.unwrap().total_norm / 2.0_f32.powi(exponent)
        };
        for seed in 0..32 {
            // All tiles below it, some, and none.
            let norms = [-4, 0, 1, 2, 4].map(|above| norm(seed, bound + above));
            assert!(
                norms.iter().all(|norm| *norm == norms[0]),
                "{norm_type:?} by 2^{bound}, seed {seed}: {norms:?}"
            );
        }
    }
}
