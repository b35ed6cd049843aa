//! Whose norm it is: groups, gradients left out, and a norm for each gradient.

use super::*;
use crate::{Epsilon, NonFinite, NormType};

fn numbers(len: u64) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) * 1.3_f32.powi((i % 50) as i32)).collect()
}

#[test]
fn are_clipped_as_in_separate_calls() {
    let lens = [300_000, 5, 0, 20_001, 1, 70_000, 262_145];
    let before: Vec<Vec<f32>> = lens.into_iter().map(numbers).collect();
    for norm_type in [NormType::L2, NormType::L1, NormType::Inf, NormType::P(3.0), NormType::P(0.0)] {
        let clip = |limit| Clip::by_global_norm(limit).norm_type(norm_type);
        let clips = [clip(1.0), clip(1e9), clip(f32::INFINITY)];
        let mut together = before.clone();
        let gradients = together.iter_mut().enumerate();
        let mut gradients: Vec<_> = gradients.map(|(i, x)| Gradient::f32(x).group(i % 2 * 2)).collect();
        let records = clip_groups(&mut gradients, &clips).unwrap();

        let mut alone = before.clone();
        for group in [0, 2] {
            let members = alone.iter_mut().skip(group / 2).step_by(2);
            let mut members: Vec<&mut [f32]> = members.map(Vec::as_mut_slice).collect();
            assert_eq!(
                super::clip(&mut members, clips[group]),
                Ok(Some(records[group])),
                "{norm_type:?} {group}"
            );
        }
        assert_eq!(bits(&together), bits(&alone), "{norm_type:?}");
        assert_eq!(Ok(Some(records[1])), super::clip(&mut [], clips[1]), "nobody is in it");
    }
}

#[test]
fn name_gradients_by_their_index_in_the_whole_list() {
    let (mut a, mut b, mut c) = ([f32::NAN], [1.0], [f32::INFINITY]);
    let mut gradients = [Gradient::f32(&mut a).group(1), Gradient::f32(&mut b), Gradient::f32(&mut c)];
    let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Skip);
    let records = clip_groups(&mut gradients, &[clip; 2]).unwrap();
    assert_eq!([records[0].first_non_finite(), records[1].first_non_finite()], [Some(2), Some(0)]);
}

#[test]
fn that_do_not_exist_or_do_not_fit_are_errors() {
    let mut gradient = [9.0];
    let clip = Clip::by_global_norm(1.0);
    let mut check =
        |group, clips: &[Clip]| clip_groups(&mut [Gradient::f32(&mut gradient).group(group)], clips);
    assert_eq!(check(1, &[clip]), Err(Error::GroupWithoutClip { gradient: 0.into(), given: 1, groups: 1 }));
    assert_eq!(check(0, &[]), Err(Error::NoClip));
    for other in [clip.norm_type(NormType::L1), Clip::by_norm(1.0), Clip::by_value(1.0), clip.loss_scale(2.0)]
    {
        let outcome = check(0, &[clip, clip, other]);
        assert!(
            matches!(outcome, Err(Error::GroupsDiffer { first: 0, second: 2, .. })),
            "{other:?}: {outcome:?}"
        );
    }
    let error = Error::InGroup { group: 1, error: Box::new(Error::MaxNorm { given: -1.0 }) };
    assert_eq!(check(0, &[clip, Clip::by_global_norm(-1.0)]), Err(error));
    // Two ways of saying the same.
    assert!(check(0, &[Clip::by_global_norm(99.0), clip.norm_type(NormType::P(2.0))]).is_ok());
    assert_eq!(gradient, [9.0]);
    assert_eq!(clip_groups(&mut [], &[]), Err(Error::NoClip));
}

#[test]
fn each_has_its_range_of_values() {
    let (mut a, mut b) = ([-9.0, 9.0], [-9.0, 9.0]);
    let mut gradients = [Gradient::f32(&mut a), Gradient::f32(&mut b).group(1)];
    let clips = [Clip::by_value(1.0), Clip::by_value_range(0.0, 2.0)];
    assert_eq!(clip_groups(&mut gradients, &clips), Ok(vec![]));
    assert_eq!((a, b), ([-1.0, 1.0], [0.0, 2.0]));
}

#[test]
fn what_is_not_measured_is_scaled_all_the_same() {
    for bad in [f32::NAN, f32::INFINITY, 1e30, 0.0] {
        for norm_type in [NormType::L2, NormType::Inf, NormType::P(3.0), NormType::P(-1.0)] {
            let (mut a, mut out, mut b) = ([3.0, 1.0], [bad, 8.0], [4.0]);
            let mut gradients =
                [Gradient::f32(&mut a), Gradient::f32(&mut out).unmeasured(), Gradient::f32(&mut b)];
            let clip = Clip::by_global_norm(0.5).norm_type(norm_type).non_finite(NonFinite::Error);
            let record = clip_all(&mut gradients, clip).unwrap()[0];
            let (mut alone_a, mut alone_b) = ([3.0, 1.0], [4.0]);
            assert_eq!(super::clip(&mut [&mut alone_a, &mut alone_b], clip), Ok(Some(record)));
            assert_eq!((a, b), (alone_a, alone_b));
            assert!(record.clipped() && !record.non_finite());
            assert_eq!(out[1], 8.0 * record.factor, "{norm_type:?} with {bad}");
        }
    }
}

#[test]
fn what_is_not_scaled_is_measured_all_the_same() {
    let clips = [Clip::by_global_norm(1.0), Clip::by_norm(1.0), Clip::by_value(1.0)];
    for (clip, records) in clips.into_iter().zip([1, 2, 0]) {
        let (mut a, mut kept) = ([3.0], [-4.0, f32::NAN]);
        let mut gradients = [Gradient::f32(&mut a), Gradient::f32(&mut kept).unscaled()];
        assert_eq!(clip_all(&mut gradients, clip).unwrap().len(), records, "{clip:?}");
        assert_eq!(bits(&[kept]), bits(&[[-4.0, f32::NAN]]), "{clip:?}");
        assert_ne!(a, [3.0], "{clip:?}");
    }
}

#[test]
fn zero_and_poison_reach_what_is_not_measured_and_spare_what_is_not_scaled() {
    let (mut bad, mut out, mut kept) = ([f32::NAN], [8.0], [7.0]);
    let mut gradients =
        [Gradient::f32(&mut bad), Gradient::f32(&mut out).unmeasured(), Gradient::f32(&mut kept).unscaled()];
    clip_all(&mut gradients, Clip::by_global_norm(1.0).non_finite(NonFinite::Zero)).unwrap();
    assert_eq!((bad, out, kept), ([0.0], [0.0], [7.0]));
}

#[test]
fn by_norm_gives_each_gradient_its_own() {
    let (mut a, mut b, mut none, mut within) = ([3.0, -4.0], [0.0, 12.0], [], [0.6]);
    let mut gradients = [
        Gradient::f32(&mut a),
        Gradient::f32(&mut b).group(1),
        Gradient::f32(&mut none),
        Gradient::f32(&mut within),
    ];
    let clip = |limit| Clip::by_norm(limit).epsilon(Epsilon::None);
    let records = clip_groups(&mut gradients, &[clip(1.0), clip(3.0)]).unwrap();
    let norms: Vec<f32> = records.iter().map(|record| record.total_norm).collect();
    assert_eq!(norms, [5.0, 12.0, 0.0, 0.6]);
    assert_eq!(records.iter().map(ClipRecord::clipped).collect::<Vec<_>>(), [true, true, false, false]);
    assert_eq!((a, b, within), ([3.0 * 0.2, -4.0 * 0.2], [0.0, 3.0], [0.6]));
    assert_eq!(super::clip(&mut [&mut a], clip(1.0)), Ok(None));
}

#[test]
fn by_norm_keeps_what_is_not_finite_to_its_gradient() {
    let (mut a, mut bad) = ([3.0, -4.0], [f32::INFINITY, 1.0]);
    let mut gradients = [Gradient::f32(&mut a), Gradient::f32(&mut bad)];
    let records = clip_all(&mut gradients, Clip::by_norm(1.0).non_finite(NonFinite::Zero)).unwrap();
    assert_eq!([records[0].first_non_finite(), records[1].first_non_finite()], [None, Some(1)]);
    assert!((reference::total_norm(&[&a]) - 1.0).abs() < 1e-6);
    assert_eq!(bad, [0.0, 0.0]);
}

#[test]
fn by_norm_leaves_what_is_not_measured_its_loss_scale_to_lose() {
    for limit in [0.0, 1.0] {
        let (mut a, mut out) = ([f32::NAN], [48.0]);
        let mut gradients = [Gradient::f32(&mut a), Gradient::f32(&mut out).unmeasured()];
        let records = clip_all(&mut gradients, Clip::by_norm(limit).loss_scale(16.0)).unwrap();
        assert_eq!(
            (records[1].factor, records[1].clipped(), records[1].total_norm),
            (1.0 / 16.0, false, 0.0)
        );
        assert_eq!(out, [3.0]);
    }
}

#[test]
fn by_rms_limits_the_root_of_the_mean_square() {
    let (mut a, mut b, mut none) = ([6.0, -6.0, 6.0, 6.0], [1.0; 9], []);
    let mut gradients = [Gradient::f32(&mut a), Gradient::f32(&mut b), Gradient::f32(&mut none)];
    let records = clip_all(&mut gradients, Clip::by_rms(1.5)).unwrap();
    assert_eq!(records.iter().map(|record| record.total_norm).collect::<Vec<_>>(), [12.0, 3.0, 0.0]);
    assert_eq!(a, [1.5, -1.5, 1.5, 1.5]);
    assert_eq!(b, [1.0; 9]);
    for threshold in [1.0, f32::INFINITY] {
        let clip = Clip::by_rms(threshold).epsilon(Epsilon::PyTorch);
        let records = clip_all(&mut [Gradient::f32(&mut [])], clip).unwrap();
        assert_eq!(records[0].factor, 1.0, "no elements, threshold {threshold}");
    }
}
