//! Stage `scale`: every element is multiplied by the factor of its record.

use gradclip::Clip;
use proptest::prelude::*;

use crate::common::numbers::bits;
use crate::properties::{gradients, limit, on_both_paths, total_norm};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_element_is_multiplied_by_the_coefficient(gradients in gradients(), max_norm in limit()) {
        for after in on_both_paths(&gradients, Clip::by_global_norm(max_norm)) {
            let coef = after.record().clip_coef;
            let elements = gradients.iter().flatten().zip(after.gradients.iter().flatten());
            for (&before, &after) in elements {
                // An adapter may flush subnormals.
                let is_subnormal = before.is_subnormal() || (before * coef).is_subnormal();
                prop_assert!(is_subnormal || after == before * coef, "{before} times {coef} became {after}");
            }
        }
    }

    #[test]
    fn gradients_within_the_limit_keep_their_bits(gradients in gradients(), slack in 1.0001_f32..2.0) {
        #[expect(clippy::cast_possible_truncation, reason = "the norms of these elements fit into f32")]
        let max_norm = total_norm(&gradients) as f32 * slack + 2e-6;
        for after in on_both_paths(&gradients, Clip::by_global_norm(max_norm)) {
            prop_assert_eq!(bits(&after.gradients), bits(&gradients));
            prop_assert!(!after.record().clipped());
        }
    }

    #[test]
    fn a_caller_can_multiply_by_the_factor_instead(
        gradients in gradients(),
        max_norm in limit(),
        scale in prop::sample::select(vec![1024.0, 3.0, 0.1]),
    ) {
        let clip = Clip::by_global_norm(max_norm).loss_scale(scale);
        let alone = on_both_paths(&gradients, clip.coefficient_only());
        for (alone, whole) in alone.into_iter().zip(on_both_paths(&gradients, clip)) {
            prop_assert_eq!(alone.record(), whole.record());
            prop_assert_eq!(bits(&alone.gradients), bits(&gradients));
            let factor = alone.record().factor;
            for (&before, &after) in gradients.iter().flatten().zip(whole.gradients.iter().flatten()) {
                // An adapter may flush subnormals.
                let is_subnormal = before.is_subnormal() || (before * factor).is_subnormal();
                prop_assert!(is_subnormal || after == before * factor, "{before} times {factor} became {after}");
            }
        }
    }
}
