//! The floating-point modes of the caller do not affect results.

use super::*;
use crate::distributed::join_norms;
use crate::float_modes::tests::in_odd_modes;
use crate::loss_scale::LossScale;
use crate::{AutoClip, NormHistory, NormType, NormWindow, ZClip};

/// Returns gradients near the smallest normal f32, of lengths for one thread and for several.
fn gradients() -> impl Iterator<Item = Vec<f32>> {
    let number = |i: usize| if i.is_multiple_of(3) { 1e-39 } else { -1.3e-38 } * (1.0 + i as f32 / 3e6);
    [1, 7, 5000, (1 << 18) + 5, 1 << 20].into_iter().map(move |len| (0..len).map(number).collect())
}

/// Clips a copy. Returns the bits of the records, the statistics and the clipped gradient.
fn outcome(gradient: &[f32], clip: Clip) -> impl PartialEq {
    let mut after = gradient.to_vec();
    let mut plan = ClipPlan::new(&[clip.tensor_stats()]).unwrap();
    let records = plan.clip(&mut [Gradient::f32(&mut after)]).unwrap();
    let stats = plan.tensor_stats().to_vec();
    let records: Vec<[u32; 10]> = records.into_iter().map(bytemuck::cast).collect();
    let stats: Vec<[u32; 4]> = stats.into_iter().map(bytemuck::cast).collect();
    (records, stats, bits(&[after]))
}

#[test]
fn subnormals_are_not_flushed_in_the_modes_of_the_caller() {
    for gradient in gradients() {
        for norm_type in [NormType::L2, NormType::L1, NormType::Inf, NormType::P(3.0), NormType::P(-1.0)] {
            let clip = Clip::by_global_norm(5e-39).norm_type(norm_type).epsilon(crate::Epsilon::Value(2e-38));
            for clip in [clip, clip.loss_scale(0.3), clip.loss_scale(3e38)] {
                let expected = outcome(&gradient, clip);
                let actual = in_odd_modes(|| outcome(&gradient, clip));
                assert!(actual == expected, "{norm_type:?} of {} elements", gradient.len());
            }
        }
        let expected = (total_norm(&[&gradient]), measure(&[&gradient], 1e-39).unwrap());
        let actual = in_odd_modes(|| (total_norm(&[&gradient]), measure(&[&gradient], 1e-39).unwrap()));
        assert_eq!(actual, expected);
    }
}

#[test]
#[cfg(feature = "rayon")]
fn subnormals_are_not_flushed_on_threads_that_inherit_the_modes() {
    let gradient = gradients().last().unwrap();
    let clip = Clip::by_global_norm(1e-38).epsilon(crate::Epsilon::None);
    let expected = outcome(&gradient, clip);
    let pool = || rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let actual = in_odd_modes(pool).install(|| outcome(&gradient, clip));
    assert!(actual == expected);
}

#[test]
fn host_computations_on_records_do_not_depend_on_the_modes() {
    let record = measure(&[&[1e-39, 2e-39]], 1.0).unwrap();
    let all = || {
        let mut history = NormHistory { steps: 1, mean: 1e-39, deviation: 1e-41 };
        let limit = ZClip { warm_up: 1, ..ZClip::default() }.limit(&mut history, 5e-39);
        let mut window = NormWindow { norms: vec![1e-39, 3e-39] };
        let mut plan = ClipPlan::new(&[Clip::by_norm(1.0).auto_clip(AutoClip::default())]).unwrap();
        plan.set_norm_windows(std::slice::from_ref(&window)).unwrap();
        let percentile = AutoClip::default().limit(&mut window, 5e-39);
        let limits = [limit, percentile];
        let update = LossScale::default().update(&record);
        (join_norms([&record, &record], NormType::L2), limits, history, window, update)
    };
    let expected = all();
    assert!(expected.1.iter().all(|limit| limit.is_some_and(f32::is_subnormal)));
    assert_eq!(in_odd_modes(all), expected);
}
