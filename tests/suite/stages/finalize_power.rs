//! Stage `finalize_power`: partials of general p, joined over tiles and tensors.

use gradclip::{Clip, NormType, reference};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::numbers::noise;
use crate::properties::on_both_paths;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Covers only positive p: for other p the norm of several tensors depends on how the elements are divided among
    /// them.
    #[test]
    fn a_norm_of_positive_p_is_the_same_for_parts_and_for_the_whole(
        seed in any::<u32>(),
        len in 1..9000_usize,
        cuts in vec(0..9000_usize, 0..4),
        p in prop::sample::select(vec![0.5, 1.0, 1.5, 2.0, 3.0, 7.0, f32::INFINITY]),
    ) {
        let whole = noise(seed, len);
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(len)).chain([0, len]).collect();
        cuts.sort_unstable();
        let parts: Vec<_> = cuts.windows(2).map(|cut| whole[cut[0]..cut[1]].to_vec()).collect();
        let expected = reference::norm(&[&whole], NormType::P(p));
        for outcome in on_both_paths(&parts, Clip::by_global_norm(1.0).norm_type(NormType::P(p))) {
            let norm = f64::from(outcome.record().total_norm);
            // The accuracy of `pow` on the device.
            prop_assert!((norm - expected).abs() <= 3e-6 * expected, "{norm}, not {expected}, for p = {p}");
        }
    }
}
