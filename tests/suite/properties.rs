//! Properties of clips by norm, for random gradients on both paths.

use gradclip::{Clip, DType, NormType, reference};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::clip::{Outcome, clip_on_cpu};
use crate::common::gpu::least_limits;
use crate::common::numbers::{bits, noise, slices};
use crate::common::placement::{Placement, extents};
use crate::{gpu, gpu_with};

pub(crate) type Gradients = Vec<Vec<f32>>;

/// The relative error of sums of a few thousand elements.
const ROUNDING: f64 = 1e-6;

/// Clips on the CPU and on the GPU.
pub(crate) fn on_both_paths(gradients: &[Vec<f32>], clip: Clip) -> [Outcome; 2] {
    [clip_on_cpu(gradients, clip), gpu().clip(&Placement::packed(&extents(gradients)), gradients, clip)]
}

pub(crate) fn total_norm(gradients: &[Vec<f32>]) -> f64 {
    reference::total_norm(&slices(gradients))
}

/// Elements of every magnitude, with squares within f32, so that no infinity masks an error.
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

pub(crate) fn gradients() -> impl Strategy<Value = Gradients> {
    vec(gradient(), 0..5)
}

pub(crate) fn limit() -> impl Strategy<Value = f32> {
    (1.0_f32..10.0, -6..6).prop_map(|(x, exponent)| x * 10.0_f32.powi(exponent))
}

/// Gradients scattered over three buffers in random order, with gaps of zero to three words.
fn scattered() -> impl Strategy<Value = (Gradients, Placement)> {
    let one = (vec(element(), 0..70), 0..3_usize, 0..4_usize);
    let order = |some: Vec<_>| (Just((0..some.len()).collect::<Vec<_>>()).prop_shuffle(), Just(some));
    vec(one, 0..12).prop_flat_map(order).prop_map(|(order, some)| {
        let mut placement = Placement::empty(3);
        placement.spans = vec![(0, 0..0); some.len()];
        for index in order {
            let (gradient, buffer, gap) = &some[index];
            let start = placement.buffers[*buffer] + 2 * gap;
            placement.spans[index] = placement.extend(*buffer, start, (DType::F32, gradient.len()));
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
    fn a_second_clip_changes_nothing(gradients in gradients(), max_norm in limit()) {
        let clip = Clip::by_global_norm(max_norm);
        for once in on_both_paths(&gradients, clip) {
            for twice in on_both_paths(&once.gradients, clip) {
                // At the limit, PyTorch's epsilon reduces the coefficient a little.
                let least = 1.0 - 1e-6 / f64::from(max_norm) - ROUNDING;
                let coef = twice.record().clip_coef;
                prop_assert!(f64::from(coef) >= least, "{coef} after a clip to {max_norm}");
            }
        }
    }

    #[test]
    fn coefficient_only_gives_the_record_of_a_clip(gradients in gradients(), max_norm in limit()) {
        let clip = Clip::by_global_norm(max_norm);
        let alone = on_both_paths(&gradients, clip.coefficient_only());
        for (alone, whole) in alone.into_iter().zip(on_both_paths(&gradients, clip)) {
            prop_assert_eq!(alone.record(), whole.record());
            prop_assert_eq!(bits(&alone.gradients), bits(&gradients));
        }
    }

    #[test]
    fn the_norm_is_the_same_for_parts_and_for_the_whole(gradients in gradients(), cut in 0..5000_usize) {
        let whole = vec![gradients.concat()];
        let (head, tail) = whole[0].split_at(cut.min(whole[0].len()));
        let clip = Clip::by_global_norm(1.0);
        for parts in [&gradients, &whole, &vec![head.to_vec(), tail.to_vec()]] {
            for outcome in on_both_paths(parts, clip) {
                let (norm, expected) = (f64::from(outcome.record().total_norm), total_norm(&gradients));
                prop_assert!((norm - expected).abs() <= ROUNDING * expected, "{norm}, not {expected}");
            }
        }
    }

    /// Covers magnitudes near 1 and near those beyond which the shader first scales the elements: 2^-40 and 2^45 for
    /// the L2 norm, 2^-80 and 2^90 for the L1 norm. Covers one tile and several.
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
            outcomes.map(|outcome| outcome.record().total_norm)
        };
        let expected = norms(magnitude).map(|norm| norm * 2.0_f32.powi(exponent));
        prop_assert_eq!(norms(magnitude + exponent), expected);
    }

    #[test]
    fn the_norm_is_between_its_bounds_by_the_largest_magnitude(gradients in gradients()) {
        let elements = gradients.concat().len() as f64;
        for outcome in on_both_paths(&gradients, Clip::by_global_norm(1.0)) {
            let record = outcome.record();
            let (norm, largest) = (f64::from(record.total_norm), f64::from(record.max_magnitude));
            prop_assert!(largest <= norm * (1.0 + ROUNDING), "{record:?}");
            prop_assert!(norm <= elements.sqrt() * largest * (1.0 + ROUNDING), "{record:?}");
        }
    }

    #[test]
    fn the_inf_norm_is_below_l2_and_l2_below_l1(gradients in gradients()) {
        let norms = [NormType::Inf, NormType::L2, NormType::L1].map(|norm_type| {
            let outcomes = on_both_paths(&gradients, Clip::by_global_norm(1.0).norm_type(norm_type));
            outcomes.map(|outcome| f64::from(outcome.record().total_norm))
        });
        for (smaller, larger) in norms.iter().zip(&norms[1..]) {
            for (smaller, larger) in smaller.iter().zip(larger) {
                prop_assert!(*smaller <= larger * (1.0 + ROUNDING), "{norms:?}");
            }
        }
    }
}

#[test]
fn the_placement_of_gradients_does_not_change_a_bit() {
    let least = gpu_with(|limits| *limits = least_limits());
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    proptest!(config, |((gradients, placement) in scattered(), max_norm in limit())| {
        let separate = Placement::separate(&extents(&gradients));
        let separate = gpu().clip(&separate, &gradients, Clip::by_global_norm(max_norm));
        let clamped = clip_on_cpu(&gradients, Clip::by_value(max_norm));
        for gpu in [gpu(), &least] {
            let clipped = gpu.clip(&placement, &gradients, Clip::by_global_norm(max_norm));
            prop_assert_eq!(clipped.record(), separate.record());
            prop_assert_eq!(bits(&clipped.gradients), bits(&separate.gradients));
            let clipped = gpu.clip(&placement, &gradients, Clip::by_value(max_norm));
            prop_assert_eq!(bits(&clipped.gradients), bits(&clamped.gradients));
        }
    });
}
