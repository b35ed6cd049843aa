//! Stage `finalize`: many partials of one segment.

use gradclip::{Clip, NormType, reference};

use crate::common::gpu::{Gpu, adapters};
use crate::common::numbers::{noise, slices};
use crate::common::placement::{Placement, extents};
use crate::gpu;

const NORM: Clip = Clip::by_global_norm(1.0);

/// On devices that allow wide workgroups, these reduce many partials in the same order as narrow ones. Covers plain
/// partials, and partials that need a second read.
#[test]
fn wide_workgroups_add_in_the_same_order() {
    let wide = Gpu::open(&adapters()[0], adapters()[0].limits());
    assert!(
        wide.device.limits().max_compute_invocations_per_workgroup >= 1024,
        "the device has no wide workgroups to compare with"
    );
    assert!(
        gpu().device.limits().max_compute_invocations_per_workgroup < 1024,
        "the default limits allow wide workgroups"
    );
    // Three iterations of a wide workgroup, the last one not full.
    let plain: Vec<_> = (0..41_000).map(|seed| noise(seed, 1)).collect();
    let placement = Placement::packed(&extents(&plain));
    let rescued: Vec<_> = plain.iter().map(|gradient| vec![gradient[0] * 1e-30]).collect();
    let mut mixed = plain.clone();
    mixed[40_000] = vec![3e30];
    let mut infinite = plain.clone();
    infinite[20_321] = vec![f32::INFINITY];
    // L1, because a square root would hide most of the effects of another order.
    let sum = NORM.norm_type(NormType::L1).coefficient_only();
    for seed in 1..5 {
        let gradients: Vec<_> = (0..41_000).map(|index| noise(seed * 50_000 + index, 1)).collect();
        let norms = [gpu(), &wide].map(|gpu| gpu.clip(&placement, &gradients, sum).record());
        assert_eq!(norms[0], norms[1], "seed {seed}");
    }
    for gradients in [plain, rescued, mixed, infinite] {
        let outcomes = [gpu(), &wide].map(|gpu| gpu.clip(&placement, &gradients, NORM));
        assert_eq!(outcomes[0].record(), outcomes[1].record());
        let expected = reference::total_norm(&slices(&gradients));
        let norm = f64::from(outcomes[0].record().total_norm);
        assert!(norm == expected || (norm - expected).abs() <= 3e-7 * expected, "{norm}, not {expected}");
    }
}
