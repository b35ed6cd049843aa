//! Groups of gradients.

use super::*;
use crate::{NonFinite, NormType};

fn numbers(len: u64) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) * 1.3_f32.powi((i % 50) as i32)).collect()
}

#[test]
fn groups_are_clipped_as_in_separate_calls() {
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
                clip_slices(&mut members, clips[group]),
                Ok(vec![records[group]]),
                "{norm_type:?} {group}"
            );
        }
        assert_eq!(bits(&together), bits(&alone), "{norm_type:?}");
        assert_eq!(Ok(vec![records[1]]), cpu::clip(&mut [], clips[1]), "an empty group");
    }
}

#[test]
fn first_non_finite_is_an_index_into_the_whole_list() {
    let (mut a, mut b, mut c) = ([f32::NAN], [1.0], [f32::INFINITY]);
    let mut gradients = [Gradient::f32(&mut a).group(1), Gradient::f32(&mut b), Gradient::f32(&mut c)];
    let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Skip);
    let records = clip_groups(&mut gradients, &[clip; 2]).unwrap();
    assert_eq!([records[0].first_non_finite(), records[1].first_non_finite()], [Some(2), Some(0)]);
}

#[test]
fn unknown_and_incompatible_groups_are_errors() {
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
    // Two spellings of the same norm type.
    assert!(check(0, &[Clip::by_global_norm(99.0), clip.norm_type(NormType::P(2.0))]).is_ok());
    assert_eq!(gradient, [9.0]);
    assert_eq!(clip_groups(&mut [], &[]), Err(Error::NoClip));
}

#[test]
fn each_group_has_its_range_of_values() {
    let (mut a, mut b) = ([-9.0, 9.0], [-9.0, 9.0]);
    let mut gradients = [Gradient::f32(&mut a), Gradient::f32(&mut b).group(1)];
    let clips = [Clip::by_value(1.0), Clip::by_value_range(0.0, 2.0)];
    assert_eq!(clip_groups(&mut gradients, &clips), Ok(vec![]));
    assert_eq!((a, b), ([-1.0, 1.0], [0.0, 2.0]));
}
