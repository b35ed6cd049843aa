//! Stage `partials_power`: the terms of a norm of general p.

use gradclip::{Clip, NormType, reference};

use crate::common::numbers::slices;
use crate::gpu;

#[test]
fn a_small_p_counts_elements_far_below_the_largest() {
    let gradients = vec![vec![1e30, 2e30, 3e-30], vec![5.0, 1e-42]];
    for p in [0.1, 0.25, -0.1] {
        // Also with tensor statistics, which make each tensor a separate segment.
        for statistics in [false, true] {
            let clip = Clip::by_global_norm(1.0).norm_type(NormType::P(p));
            let clip = if statistics { clip.tensor_stats() } else { clip };
            let placed = gpu().place_packed(&gradients);
            let record = gpu().record(&gpu().clipper.prepare(&placed.gradients(), clip).unwrap());
            let expected = reference::norm(&slices(&gradients), NormType::P(p));
            let found = f64::from(record.norm_significand) * f64::from(record.norm_exponent).exp2();
            assert!((found - expected).abs() <= 1e-5 * expected, "p = {p}: {found:e}, not {expected:e}");
        }
    }
}
