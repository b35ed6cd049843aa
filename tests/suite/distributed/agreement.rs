//! Ranks that do not clip alike get the same error.

use gradclip::distributed::{AllReduce as _, JoinError, ShardedClip};
use gradclip::loss_scale::LossScale;
use gradclip::stats::{NormHistory, StepCounts};
use gradclip::{AutoClip, Clip, Epsilon, Error, NonFinite, NormType, ZClip, cpu};

use super::ranks::ranks;

const CLIP: Clip = Clip::by_global_norm(1.0);

/// Joins one step of a clip that `make` makes for each rank. All three ranks must return the same error.
fn disagreement(make: impl Fn(bool) -> ShardedClip + Sync) -> Error {
    let errors = ranks(3, 1, |rank| {
        let is_odd = rank.rank() == 1;
        let mut clip = make(is_odd);
        let share = clip.measure_on_cpu(&[cpu::Gradient::f32(&mut [1.0])]);
        match clip.join([share], rank) {
            Err(JoinError::Clip(error)) => error,
            other => panic!("{other:?}"),
        }
    });
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
    errors[0].clone()
}

/// The option that differs, the two values, and the clips of both ranks.
type Case = (&'static str, Option<[&'static str; 2]>, Vec<Clip>, Vec<Clip>);

#[test]
fn each_option_must_be_the_same_on_all_ranks() {
    let scaled = |scale| LossScale::new(scale).unwrap();
    let cases: Vec<Case> = vec![
        ("max_norm", Some(["1", "2"]), vec![CLIP], vec![Clip::by_global_norm(2.0)]),
        ("max_norm", Some(["1", "inf"]), vec![CLIP], vec![Clip::by_global_norm(f32::INFINITY)]),
        ("the number of groups", Some(["1", "2"]), vec![CLIP], vec![CLIP; 2]),
        ("max_norm of the groups", None, vec![CLIP; 2], vec![CLIP, Clip::by_global_norm(2.0)]),
        ("norm_type", Some(["2", "inf"]), vec![CLIP], vec![CLIP.norm_type(NormType::Inf)]),
        ("norm_type", Some(["2", "-3"]), vec![CLIP], vec![CLIP.norm_type(NormType::P(-3.0))]),
        ("the kind of clip", Some(["by_global_norm", "by_norm"]), vec![CLIP], vec![Clip::by_norm(1.0)]),
        ("epsilon", Some(["0", "1e-6"]), vec![CLIP.epsilon(Epsilon::Value(0.0))], vec![CLIP]),
        ("non_finite", Some(["propagate", "skip"]), vec![CLIP], vec![CLIP.non_finite(NonFinite::Skip)]),
        ("coefficient_only", Some(["off", "on"]), vec![CLIP], vec![CLIP.coefficient_only()]),
        ("tensor_stats", Some(["off", "on"]), vec![CLIP], vec![CLIP.tensor_stats()]),
        ("count_steps", Some(["off", "on"]), vec![CLIP], vec![CLIP.count_steps()]),
        ("z_clip", None, vec![CLIP], vec![CLIP.z_clip(ZClip::default())]),
        ("auto_clip", None, vec![CLIP], vec![CLIP.auto_clip(AutoClip::default())]),
        ("skip_above", None, vec![CLIP], vec![CLIP.skip_above(3.0)]),
        ("the inverse of the loss scale", Some(["0.25", "1"]), vec![CLIP], vec![CLIP.loss_scale(4.0)]),
        (
            "dynamic_loss_scale",
            None,
            vec![CLIP.dynamic_loss_scale(scaled(4.0))],
            vec![CLIP.dynamic_loss_scale(scaled(8.0))],
        ),
    ];
    for (option, given, clips, others) in cases {
        let given = given.map(|given| given.map(str::to_owned));
        let error = disagreement(|is_odd| ShardedClip::new(if is_odd { &others } else { &clips }).unwrap());
        assert_eq!(error, Error::RanksDiffer { option, given });
    }
}

#[test]
fn limits_scale_and_state_must_be_changed_on_all_ranks() {
    let changed = |clip: Clip, change: &(dyn Fn(&mut ShardedClip) + Sync)| {
        let error = disagreement(|is_odd| {
            let mut clip = ShardedClip::new(&[clip]).unwrap();
            if is_odd {
                change(&mut clip);
            }
            clip
        });
        let Error::RanksDiffer { option, .. } = error else { panic!("{error}") };
        option
    };
    assert_eq!(changed(CLIP, &|clip| clip.set_max_norms(&[0.5]).unwrap()), "max_norm");
    let scaled = CLIP.loss_scale(2.0);
    assert_eq!(changed(scaled, &|clip| clip.set_loss_scale(4.0).unwrap()), "the inverse of the loss scale");
    let counts = StepCounts { steps: 3, ..StepCounts::default() };
    assert_eq!(
        changed(CLIP.count_steps(), &|clip| clip.set_step_counts(&[counts]).unwrap()),
        "the restored step counts"
    );
    let history = NormHistory { steps: 3, mean: 1.0, deviation: 0.5 };
    let z_clip = CLIP.z_clip(ZClip::default());
    assert_eq!(
        changed(z_clip, &|clip| clip.set_histories(&[history]).unwrap()),
        "the restored norm histories"
    );
}

#[test]
fn ranks_with_norms_for_each_gradient_list_the_same_gradients() {
    for (option, odd) in [("the number of records", vec![0; 3]), ("the groups of the gradients", vec![1, 0])]
    {
        let errors = ranks(2, 0, |rank| {
            let groups = if rank.rank() == 1 { odd.clone() } else { vec![0, 1] };
            let mut elements = vec![[1.0]; groups.len()];
            let gradients: Vec<_> = elements
                .iter_mut()
                .zip(groups)
                .map(|(elements, group)| cpu::Gradient::f32(elements).group(group))
                .collect();
            let mut clip = ShardedClip::new(&[Clip::by_norm(1.0); 2]).unwrap();
            let share = clip.measure_on_cpu(&gradients);
            clip.join([share], rank).unwrap_err()
        });
        for error in errors {
            let JoinError::Clip(Error::RanksDiffer { option: differs, .. }) = error else {
                panic!("{error}")
            };
            assert_eq!(differs, option);
        }
    }
}

/// After an error all ranks may change their options and go on.
#[test]
fn a_disagreement_about_limits_is_not_the_end() {
    let counts = ranks(2, 1, |rank| {
        let mut clip = ShardedClip::new(&[CLIP.count_steps()]).unwrap();
        let share = clip.measure_on_cpu(&[cpu::Gradient::f32(&mut [3.0, 4.0])]).unwrap();
        clip.join([Ok(share.clone())], rank).unwrap();
        if rank.rank() == 1 {
            clip.set_max_norms(&[2.0]).unwrap();
        }
        let error = clip.join([Ok(share.clone())], rank).unwrap_err();
        assert!(matches!(error, JoinError::Clip(Error::RanksDiffer { option: "max_norm", .. })), "{error}");
        clip.set_max_norms(&[2.0]).unwrap();
        let record = clip.join([Ok(share)], rank).unwrap()[0];
        (record.factor, clip.step_counts()[0].steps)
    });
    assert_eq!(counts[0], counts[1]);
    assert_eq!(counts[0].1, 2, "the step that failed is not counted");
}
