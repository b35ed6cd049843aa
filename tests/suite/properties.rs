//! What holds for any gradients, on both paths.

use gradclip::{Clip, NormType, reference};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::{bits, least_limits, noise};
use crate::words::{Outcome, Placement, clip_on_cpu, slices};
use crate::{gpu, gpu_with};

type Gradients = Vec<Vec<f32>>;

/// Sums of a few thousand elements, twice rounded.
const ROUNDING: f64 = 1e-6;

fn on_both_paths(gradients: &[Vec<f32>], clip: Clip) -> [Outcome; 2] {
    let lens: Vec<_> = gradients.iter().map(Vec::len).collect();
    let on_gpu = gpu().clip(&Placement::packed(&lens), gradients, clip);
    [clip_on_cpu(gradients, clip), on_gpu].map(|outcome| outcome.expect("valid options"))
}

fn total_norm(gradients: &[Vec<f32>]) -> f64 {
    reference::total_norm(&slices(gradients))
}

/// Elements of every size whose squares stay in f32, so that nothing hides behind an infinity.
fn element() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -8.0_f32..8.0,
        2 => (1.0_f32..2.0, -60..60).prop_map(|(x, exponent)| x * 2.0_f32.powi(exponent)),
        1 => prop::sample::select(vec![0.0, -0.0, 1e-45, -1e-40, 1.0, -1.0]),
    ]
}

fn gradient() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        4 => vec(element(), 0..40),
        1 => (any::<u32>(), 4090..4105_usize).prop_map(|(seed, len)| noise(seed, len)),
    ]
}

fn gradients() -> impl Strategy<Value = Gradients> {
    vec(gradient(), 0..5)
}

fn limit() -> impl Strategy<Value = f32> {
    (1.0_f32..10.0, -6..6).prop_map(|(x, exponent)| x * 10.0_f32.powi(exponent))
}

/// Gradients scattered over some buffers in any order, with no to three words in between.
fn scattered() -> impl Strategy<Value = (Gradients, Placement)> {
    let one = (vec(element(), 0..70), 0..3_usize, 0..4_usize);
    let order = |some: Vec<_>| (Just((0..some.len()).collect::<Vec<_>>()).prop_shuffle(), Just(some));
    vec(one, 0..12).prop_flat_map(order).prop_map(|(order, some)| {
        let mut placement = Placement { spans: vec![(0, 0..0); some.len()], buffers: vec![0; 3] };
        for index in order {
            let (gradient, buffer, gap) = &some[index];
            let end = &mut placement.buffers[*buffer];
            let start = *end + gap;
            *end = start + gradient.len();
            placement.spans[index] = (*buffer, start..*end);
        }
        (some.into_iter().map(|(gradient, ..)| gradient).collect(), placement)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_norm_is_within_the_limit_afterwards(gradients in gradients(), max_norm in limit()) {
        for after in on_both_paths(&gradients, Clip::by_global_norm(max_norm)) {
            let norm = total_norm(&after.gradients);
            prop_assert!(norm <= f64::from(max_norm) * (1.0 + ROUNDING), "{norm} after a clip to {max_norm}");
        }
    }

    #[test]
    fn what_is_within_the_limit_keeps_its_bits(gradients in gradients(), slack in 1.0001_f32..2.0) {
        #[expect(clippy::cast_possible_truncation, reason = "the norms of these elements are f32s")]
        let max_norm = total_norm(&gradients) as f32 * slack + 2e-6;
        for after in on_both_paths(&gradients, Clip::by_global_norm(max_norm)) {
            prop_assert_eq!(bits(&after.gradients), bits(&gradients));
            prop_assert!(!after.record.unwrap().clipped());
        }
    }

    #[test]
    fn a_second_clip_changes_nothing_more(gradients in gradients(), max_norm in limit()) {
        let clip = Clip::by_global_norm(max_norm);
        for once in on_both_paths(&gradients, clip) {
            for twice in on_both_paths(&once.gradients, clip) {
                // Of a norm at the limit, PyTorch's epsilon takes its part.
                let least = 1.0 - 1e-6 / f64::from(max_norm) - ROUNDING;
                let coef = twice.record.unwrap().clip_coef;
                prop_assert!(f64::from(coef) >= least, "{coef} after a clip to {max_norm}");
            }
        }
    }

    #[test]
    fn every_element_is_multiplied_by_the_coefficient(gradients in gradients(), max_norm in limit()) {
        for after in on_both_paths(&gradients, Clip::by_global_norm(max_norm)) {
            let coef = after.record.unwrap().clip_coef;
            let elements = gradients.iter().flatten().zip(after.gradients.iter().flatten());
            for (&before, &after) in elements {
                // An adapter may flush subnormals.
                let is_subnormal = before.is_subnormal() || (before * coef).is_subnormal();
                prop_assert!(is_subnormal || after == before * coef, "{before} times {coef} became {after}");
            }
        }
    }

    #[test]
    fn the_coefficient_alone_is_that_of_a_clip(gradients in gradients(), max_norm in limit()) {
        let clip = Clip::by_global_norm(max_norm);
        let alone = on_both_paths(&gradients, clip.coefficient_only());
        for (alone, whole) in alone.into_iter().zip(on_both_paths(&gradients, clip)) {
            prop_assert_eq!(alone.record, whole.record);
            prop_assert_eq!(bits(&alone.gradients), bits(&gradients));
        }
    }

    #[test]
    fn tensors_may_be_cut_and_joined(gradients in gradients(), cut in 0..5000_usize) {
        let whole = vec![gradients.concat()];
        let (head, tail) = whole[0].split_at(cut.min(whole[0].len()));
        let clip = Clip::by_global_norm(1.0);
        for parts in [&gradients, &whole, &vec![head.to_vec(), tail.to_vec()]] {
            for outcome in on_both_paths(parts, clip) {
                let (norm, expected) = (f64::from(outcome.record.unwrap().total_norm), total_norm(&gradients));
                prop_assert!((norm - expected).abs() <= ROUNDING * expected, "{norm}, not {expected}");
            }
        }
    }

    /// Among magnitudes that can be summed up as they are, and among those on both sides of where a shader begins to
    /// scale them first: 2^-40 and 2^45 for the L2 norm, 2^-80 and 2^90 for the L1 norm. In one tile, and in several.
    #[test]
    fn a_power_of_two_scales_the_norm_exactly(
        seed in any::<u32>(),
        len in prop_oneof![2 => 0..5000_usize, 1 => 12_200..12_300_usize],
        magnitude in prop::sample::select(vec![0, -40, 45, -80, 90]),
        exponent in -15..15,
        norm_type in prop::sample::select(vec![NormType::L1, NormType::L2, NormType::Inf]),
    ) {
        let scaled = |power: i32| vec![noise(seed, len).iter().map(|g| g * 2.0_f32.powi(power)).collect()];
        let norms = |power| {
            let outcomes = on_both_paths(&scaled(power), Clip::by_global_norm(1.0).norm_type(norm_type));
            outcomes.map(|outcome| outcome.record.unwrap().total_norm)
        };
        let expected = norms(magnitude).map(|norm| norm * 2.0_f32.powi(exponent));
        prop_assert_eq!(norms(magnitude + exponent), expected);
    }

    #[test]
    fn the_norm_is_between_the_largest_and_all_as_large(gradients in gradients()) {
        let elements = gradients.concat().len() as f64;
        for outcome in on_both_paths(&gradients, Clip::by_global_norm(1.0)) {
            let record = outcome.record.unwrap();
            let (norm, largest) = (f64::from(record.total_norm), f64::from(record.max_magnitude));
            prop_assert!(largest <= norm * (1.0 + ROUNDING), "{record:?}");
            prop_assert!(norm <= elements.sqrt() * largest * (1.0 + ROUNDING), "{record:?}");
        }
    }

    #[test]
    fn norms_are_in_order(gradients in gradients()) {
        let norms = [NormType::Inf, NormType::L2, NormType::L1].map(|norm_type| {
            let outcomes = on_both_paths(&gradients, Clip::by_global_norm(1.0).norm_type(norm_type));
            outcomes.map(|outcome| f64::from(outcome.record.unwrap().total_norm))
        });
        for (smaller, larger) in norms.iter().zip(&norms[1..]) {
            for (smaller, larger) in smaller.iter().zip(larger) {
                prop_assert!(*smaller <= larger * (1.0 + ROUNDING), "{norms:?}");
            }
        }
    }

    /// Of a negative p, or 0, the norm of tensors depends on what is a tensor.
    #[test]
    fn no_norm_of_positive_p_depends_on_cuts(
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
            let norm = f64::from(outcome.record.unwrap().total_norm);
            // What `pow` of a device allows.
            prop_assert!((norm - expected).abs() <= 3e-6 * expected, "{norm}, not {expected}, for p = {p}");
        }
    }

    #[test]
    fn the_factor_alone_is_all_of_a_clip(
        gradients in gradients(),
        max_norm in limit(),
        scale in prop::sample::select(vec![1024.0, 3.0, 0.1]),
    ) {
        let clip = Clip::by_global_norm(max_norm).loss_scale(scale);
        let alone = on_both_paths(&gradients, clip.coefficient_only());
        for (alone, whole) in alone.into_iter().zip(on_both_paths(&gradients, clip)) {
            prop_assert_eq!(alone.record, whole.record);
            prop_assert_eq!(bits(&alone.gradients), bits(&gradients));
            let factor = alone.record.unwrap().factor;
            for (&before, &after) in gradients.iter().flatten().zip(whole.gradients.iter().flatten()) {
                // An adapter may flush subnormals.
                let is_subnormal = before.is_subnormal() || (before * factor).is_subnormal();
                prop_assert!(is_subnormal || after == before * factor, "{before} times {factor} became {after}");
            }
        }
    }

    /// A power of two is undone exactly: what a clip of the gradients without it leaves.
    #[test]
    fn a_loss_scale_is_undone(gradients in vec(vec(-8.0_f32..8.0, 0..50), 0..5), max_norm in 0.01_f32..20.0) {
        let scaled: Gradients = gradients.iter().map(|some| some.iter().map(|g| g * 1024.0).collect()).collect();
        let clip = Clip::by_global_norm(max_norm);
        let plain = on_both_paths(&gradients, clip);
        for (plain, unscaled) in plain.into_iter().zip(on_both_paths(&scaled, clip.loss_scale(1024.0))) {
            prop_assert_eq!(plain.record.unwrap().total_norm, unscaled.record.unwrap().total_norm);
            prop_assert_eq!(plain.record.unwrap().clip_coef, unscaled.record.unwrap().clip_coef);
            prop_assert_eq!(bits(&plain.gradients), bits(&unscaled.gradients));
        }
    }

    #[test]
    fn a_clamp_keeps_the_order(gradients in gradients(), low in -9.0_f32..9.0, width in 0.0_f32..9.0) {
        for after in on_both_paths(&gradients, Clip::by_value_range(low, low + width)) {
            for (&before, &after) in gradients.iter().flatten().zip(after.gradients.iter().flatten()) {
                let expected = reference::clamp(before, low, low + width);
                prop_assert_eq!(after.to_bits(), expected.to_bits());
            }
        }
    }
}

#[test]
fn it_does_not_matter_where_gradients_lie() {
    let least = gpu_with(|limits| *limits = least_limits());
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    proptest!(config, |((gradients, placement) in scattered(), max_norm in limit())| {
        let lens: Vec<_> = gradients.iter().map(Vec::len).collect();
        let separate = gpu().clip(&Placement::separate(&lens), &gradients, Clip::by_global_norm(max_norm)).unwrap();
        let clamped = clip_on_cpu(&gradients, Clip::by_value(max_norm)).unwrap();
        for gpu in [gpu(), &least] {
            let clipped = gpu.clip(&placement, &gradients, Clip::by_global_norm(max_norm)).unwrap();
            prop_assert_eq!(clipped.record, separate.record);
            prop_assert_eq!(bits(&clipped.gradients), bits(&separate.gradients));
            let clipped = gpu.clip(&placement, &gradients, Clip::by_value(max_norm)).unwrap();
            prop_assert_eq!(bits(&clipped.gradients), bits(&clamped.gradients));
        }
    });
}
