//! State between steps (norm histories and step counts) and supplied norms, compared with gradclip's CPU path.

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use gradclip::cpu;
use gradclip_burn::{
    Clip, ClipRecord, Error, GradClipper, NonFinite, NormHistory, NormType, StepCounts, ZClip,
};

use crate::{Model, assert_clipped, clipper, devices, noise, values, vector};

/// A z-clip with a short warm-up.
fn z_clip(clip: Clip) -> Clip {
    clip.z_clip(ZClip { warm_up: 4, ..ZClip::default() })
}

/// The sizes of the gradients at each step: zeros, noise, spikes, and norms that are not finite or exceed f32.
pub(crate) const SIZES: [f32; 16] =
    [0.0, 0.0, 1.0, 1.1, 0.9, 1.0, 50.0, 1.0, f32::NAN, 1.05, 3e38, 0.95, f32::INFINITY, 1e-30, 1.0, 4.0];

/// Three gradients of one step.
pub(crate) fn step(size: f32) -> Vec<Vec<f32>> {
    vec![vec![3.0 * size, 0.5 * size], vec![size; 5], vec![0.1 * size, -size, 0.0]]
}

pub(crate) fn close(found: f32, expected: f32) -> bool {
    let tolerance = 2e-5 * expected.abs() + f32::MIN_POSITIVE;
    found == expected || found.is_nan() && expected.is_nan() || (found - expected).abs() <= tolerance
}

pub(crate) fn assert_same_records(found: &[ClipRecord], expected: &[ClipRecord], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let flags =
            |r: &ClipRecord| (r.clipped(), r.non_finite(), r.skip(), r.zeroed(), r.first_non_finite());
        assert_eq!(flags(found), flags(expected), "{what}: {found:?}, not {expected:?}");
        let numbers =
            |r: &ClipRecord| [r.total_norm, r.clip_coef, r.factor, r.max_magnitude, r.norm_significand];
        for (one, other) in numbers(found).into_iter().zip(numbers(expected)) {
            assert!(close(one, other), "{what}: {found:?}, not {expected:?}");
        }
        assert_eq!(found.norm_exponent, expected.norm_exponent, "{what}");
    }
}

fn assert_same_histories(found: &[NormHistory], expected: &[NormHistory], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.steps, expected.steps, "{what}");
        assert!(close(found.mean, expected.mean), "{what}: {found:?}, not {expected:?}");
        // The deviation of equal norms is a small difference.
        let difference = (found.deviation - expected.deviation).abs();
        assert!(
            difference <= 2e-5 * (expected.deviation + expected.mean),
            "{what}: {found:?}, not {expected:?}"
        );
    }
}

pub(crate) fn assert_same_counts(found: &[StepCounts], expected: &[StepCounts], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let counts = |counts: &StepCounts| {
            (counts.steps, counts.clipped, counts.non_finite, counts.skipped, counts.consecutive_skips)
        };
        assert_eq!(counts(found), counts(expected), "{what}");
        assert!(close(found.largest_norm, expected.largest_norm), "{what}: {found:?}, not {expected:?}");
    }
}

/// Clips on gradclip's CPU path. `groups` has the group of each gradient.
pub(crate) fn clip_on_the_cpu(
    plan: &mut cpu::ClipPlan,
    gradients: &[Vec<f32>],
    groups: &[usize],
    norm: Option<f32>,
) -> (Vec<ClipRecord>, Vec<Vec<f32>>) {
    let mut gradients = gradients.to_vec();
    let mut list: Vec<_> = gradients
        .iter_mut()
        .zip(groups)
        .map(|(gradient, &group)| cpu::Gradient::f32(gradient).group(group))
        .collect();
    let records = match norm {
        Some(norm) => plan.clip_with_norm(&mut list, norm),
        None => plan.clip(&mut list),
    };
    (records.expect("a valid clip"), gradients)
}

pub(crate) fn gradients_on(device: &Device, gradients: &[Vec<f32>]) -> (Model, GradientsParams) {
    Model::with_gradients(gradients.iter().map(|gradient| vector(gradient, device)).collect())
}

pub(crate) fn assert_same_elements(found: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    for (found, expected) in found.concat().into_iter().zip(expected.concat()) {
        assert!(close(found, expected), "{what}: {found}, not {expected}");
    }
}

#[test]
fn limits_that_follow_past_norms_and_step_counts_agree_with_the_cpu_path() {
    // Some of the steps exceed the second limit, two of them in a row.
    let skips = Clip::by_global_norm(1.0).skip_above(3.95);
    let clips: [(Clip, &[usize]); 8] = [
        (skips, &[0; 3]),
        (skips.max_consecutive_skips(1).non_finite(NonFinite::Skip), &[0; 3]),
        (z_clip(skips.max_consecutive_skips(2)).loss_scale(2.0), &[0, 1, 0]),
        (z_clip(Clip::by_global_norm(f32::INFINITY)).count_steps(), &[0; 3]),
        (z_clip(Clip::by_global_norm(2.0)).count_steps().non_finite(NonFinite::Zero), &[0, 1, 0]),
        (z_clip(Clip::by_norm(3.0)).count_steps().norm_type(NormType::L1).loss_scale(8.0), &[0; 3]),
        (Clip::by_rms(0.5).count_steps().coefficient_only().tensor_stats(), &[0, 0, 1]),
        (z_clip(Clip::by_global_norm(f32::INFINITY)).norm_type(NormType::P(3.0)), &[0; 3]),
    ];
    for device in devices() {
        for (clip, groups) in clips {
            let mut plan = cpu::ClipPlan::new(&vec![clip; 1 + groups.iter().max().unwrap()]).unwrap();
            let clipper = match groups.iter().position(|&group| group == 1) {
                Some(index) => {
                    let path = format!("biases.{index}");
                    clipper(clip).group(clip, move |found| found == path).unwrap()
                }
                None => clipper(clip),
            };
            for (index, size) in SIZES.into_iter().enumerate() {
                let what = format!("step {index} of {clip:?} on {device:?}");
                let before = step(size);
                let (expected, expected_after) = clip_on_the_cpu(&mut plan, &before, groups, None);
                let (model, mut grads) = gradients_on(&device, &before);
                let clipped = clipper.clip(&mut grads, &model).unwrap();
                assert_eq!(clipped.used_kernels(), device == Device::default());
                let records = clipped.records().unwrap();
                assert_same_records(&records, &expected, &what);
                // These are copies of the numbers in the records.
                let of_records = |number: fn(&ClipRecord) -> f32| {
                    records.iter().map(|record| number(record).to_bits()).collect::<Vec<_>>()
                };
                let bits =
                    |tensor: Tensor<1>| values(tensor).into_iter().map(f32::to_bits).collect::<Vec<_>>();
                if !size.is_nan() {
                    assert_eq!(bits(clipped.norm()), of_records(|record| record.total_norm), "{what}");
                    assert_eq!(bits(clipped.factor()), of_records(|record| record.factor), "{what}");
                }
                assert_eq!(clipped.skipped(), expected.iter().any(ClipRecord::skip), "{what}");
                if clipped.skipped() {
                    assert!(grads.is_empty(), "{what}");
                } else {
                    assert_same_elements(&model.biases_of(&grads), &expected_after, &what);
                }
                if index % 5 == 4 || index + 1 == SIZES.len() {
                    let histories = clipper.norm_histories().unwrap();
                    if histories.is_empty() {
                        assert!(plan.histories().iter().all(|history| *history == NormHistory::default()));
                    } else {
                        assert_same_histories(&histories, plan.histories(), &what);
                    }
                    let counts = clipper.step_counts().unwrap();
                    if counts.is_empty() {
                        let text = format!("{clip:?}");
                        assert!(text.contains("count_steps: false") && text.contains("skip_above: None"));
                    } else {
                        assert_same_counts(&counts, plan.step_counts(), &what);
                    }
                }
            }
        }
    }
}

/// More records than one workgroup has invocations.
#[test]
fn each_of_many_gradients_has_its_own_state() {
    for device in devices() {
        let lengths: Vec<usize> =
            (0..if device == Device::default() { 300 } else { 30 }).map(|i| 1 + i % 7).collect();
        let clip = z_clip(Clip::by_norm(1.5)).count_steps();
        let (clipper, mut plan) = (clipper(clip), cpu::ClipPlan::new(&[clip]).unwrap());
        let groups = vec![0; lengths.len()];
        for seed in 1..7 {
            let before: Vec<_> =
                lengths.iter().zip(seed..).map(|(&length, seed)| noise(length, seed * 77)).collect();
            let (expected, expected_after) = clip_on_the_cpu(&mut plan, &before, &groups, None);
            let (model, mut grads) = gradients_on(&device, &before);
            let clipped = clipper.clip(&mut grads, &model).unwrap();
            assert_same_records(&clipped.records().unwrap(), &expected, "record");
            assert_same_elements(&model.biases_of(&grads), &expected_after, "element");
        }
        assert_same_histories(&clipper.norm_histories().unwrap(), plan.histories(), "history");
        assert_same_counts(&clipper.step_counts().unwrap(), plan.step_counts(), "counts");
    }
}

/// A step that is skipped does not enter the history, and is counted.
#[test]
fn a_skipped_step_is_counted_and_not_part_of_the_history() {
    for device in devices() {
        let clip = z_clip(Clip::by_global_norm(1.0)).count_steps().non_finite(NonFinite::Skip);
        let clipper = clipper(clip);
        for size in [1.0, f32::NAN, 1.0] {
            let (model, mut grads) = gradients_on(&device, &step(size));
            assert_eq!(clipper.clip(&mut grads, &model).unwrap().skipped(), size.is_nan());
        }
        let counts = clipper.step_counts().unwrap()[0];
        assert_eq!((counts.steps, counts.clipped, counts.non_finite, counts.taken()), (3, 3, 1, 2));
        assert_eq!(clipper.norm_histories().unwrap()[0].steps, 2);
    }
}

#[test]
fn clones_share_the_state_and_a_checkpoint_restores_it() {
    for device in devices() {
        let clip = z_clip(Clip::by_global_norm(f32::INFINITY)).count_steps();
        let original = clipper(clip);
        let clone = original.clone();
        let run = |clipper: &GradClipper, sizes: &[f32]| -> Vec<ClipRecord> {
            let record = |&size: &f32| {
                let (model, mut grads) = gradients_on(&device, &step(size));
                clipper.clip(&mut grads, &model).unwrap().records().unwrap()[0]
            };
            sizes.iter().map(record).collect()
        };
        assert!(original.norm_histories().unwrap().is_empty() && original.step_counts().unwrap().is_empty());
        run(&original, &[1.0, 1.1, 0.9]);
        run(&clone, &[1.0, 1.2]);
        assert_eq!(original.step_counts().unwrap()[0].steps, 5);
        assert_eq!(original.norm_histories().unwrap()[0].steps, 4);

        let restored = clipper(clip);
        restored.set_norm_histories(&original.norm_histories().unwrap()).unwrap();
        restored.set_step_counts(&original.step_counts().unwrap()).unwrap();
        assert_eq!(restored.norm_histories().unwrap(), clone.norm_histories().unwrap());
        let more = [1.0, 40.0, 1.1, 0.9];
        let expected = run(&original, &more);
        assert!(expected[1].clipped());
        assert_eq!(run(&restored, &more), expected, "on {device:?}");
        assert_eq!(restored.norm_histories().unwrap(), original.norm_histories().unwrap());
        assert_eq!(restored.step_counts().unwrap(), original.step_counts().unwrap());

        // An empty checkpoint starts again. Counts wrap.
        restored.set_norm_histories(&[]).unwrap();
        restored.set_step_counts(&[StepCounts { steps: u32::MAX, ..StepCounts::default() }]).unwrap();
        run(&restored, &[1.0, 1.0]);
        assert_eq!(restored.norm_histories().unwrap()[0].steps, 2);
        assert_eq!(restored.step_counts().unwrap()[0].steps, 1);
    }
}

/// The kernels and the tensor operations continue each other's state.
#[test]
fn the_state_follows_the_gradients_to_another_device() {
    let clip = z_clip(Clip::by_global_norm(f32::INFINITY)).count_steps();
    let (clipper, mut plan) = (clipper(clip), cpu::ClipPlan::new(&[clip]).unwrap());
    for (index, size) in SIZES.into_iter().enumerate() {
        let device = &devices()[index / 2 % 2];
        let (expected, _) = clip_on_the_cpu(&mut plan, &step(size), &[0; 3], None);
        let (model, mut grads) = gradients_on(device, &step(size));
        let clipped = clipper.clip(&mut grads, &model).unwrap();
        assert_same_records(&clipped.records().unwrap(), &expected, &format!("step {index}"));
    }
    assert_same_histories(&clipper.norm_histories().unwrap(), plan.histories(), "history");
    assert_same_counts(&clipper.step_counts().unwrap(), plan.step_counts(), "counts");
}

#[test]
fn state_that_does_not_fit_is_an_error_and_changes_nothing() {
    use gradclip::Error as Core;
    for device in devices() {
        let clipper = clipper(z_clip(Clip::by_norm(1.0)).count_steps());
        let (model, mut grads) = gradients_on(&device, &step(1.0));
        clipper.clip(&mut grads, &model).unwrap();
        let (histories, counts) = (clipper.norm_histories().unwrap(), clipper.step_counts().unwrap());

        // One gradient less, and another parameter.
        let refuses = |clipper: &GradClipper, gradients: &[usize]| {
            let (mut model, _) =
                gradients_on(&device, &[vec![1.0; 2], vec![1.0; 2], vec![1.0; 2], vec![1.0; 2]]);
            let mut grads = GradientsParams::new();
            for &index in gradients {
                grads.register(model.biases[index].id, vector(&[3.0, 4.0], &device));
            }
            let error = clipper.clip(&mut grads, &model).unwrap_err();
            let indices: Vec<_> = (0..4).rev().filter(|index| !gradients.contains(index)).collect();
            for index in indices {
                model.biases.remove(index);
            }
            assert_eq!(model.biases_of(&grads), vec![vec![3.0, 4.0]; gradients.len()]);
            error
        };
        assert!(matches!(
            refuses(&clipper, &[0, 1]),
            Error::Clip(Core::StateCount { what: "norm histories", given: 3, records: 2 })
        ));
        let error = refuses(&clipper, &[0, 1, 3]);
        assert!(matches!(&error, Error::OtherGradients { given, .. } if given[2] == "biases.3"), "{error}");
        assert_eq!(clipper.norm_histories().unwrap(), histories);
        assert_eq!(clipper.step_counts().unwrap(), counts);

        let bad = NormHistory { mean: -1.0, ..NormHistory::default() };
        assert!(matches!(
            clipper.set_norm_histories(&[bad]),
            Err(Error::Clip(Core::NormHistory { record: 0, .. }))
        ));
        let bad = StepCounts { largest_norm: f32::NAN, ..StepCounts::default() };
        assert!(matches!(
            clipper.set_step_counts(&[StepCounts::default(), bad]),
            Err(Error::Clip(Core::StepCounts { record: 1, .. }))
        ));
        assert_eq!(clipper.norm_histories().unwrap(), histories);
        clipper.set_step_counts(&counts[..2]).unwrap();
        assert!(matches!(
            refuses(&clipper, &[0, 1, 2]),
            Error::Clip(Core::StateCount { what: "step counts", given: 2, records: 3 })
        ));
        // Restored state fits any gradients of the right number.
        clipper.set_step_counts(&[]).unwrap();
        let (model, mut grads) = gradients_on(&device, &step(1.0));
        clipper.clip(&mut grads, &model).unwrap();
        assert_eq!(clipper.step_counts().unwrap()[2].steps, 1);

        let plain = crate::clipper(Clip::by_global_norm(1.0));
        assert!(matches!(plain.set_norm_histories(&[]), Err(Error::Clip(Core::NotEnabled { .. }))));
        assert!(matches!(plain.set_step_counts(&[]), Err(Error::Clip(Core::NotEnabled { .. }))));
    }
}

#[test]
fn a_supplied_norm_agrees_with_the_cpu_path() {
    let norms = [0.0, -0.0, 0.5, 4.0, 3e38, f32::INFINITY, f32::NAN, f32::from_bits(u32::MAX), -1.0, 1e-30];
    for device in devices() {
        for policy in [NonFinite::Propagate, NonFinite::Zero, NonFinite::Poison, NonFinite::Skip] {
            let clip = |limit| Clip::by_supplied_norm(limit).loss_scale(2.0).non_finite(policy).count_steps();
            let mut plan = cpu::ClipPlan::new(&[clip(1.0), clip(0.25)]).unwrap();
            let clipper = clipper(clip(1.0)).group(clip(0.25), |path| path == "biases.1").unwrap();
            for norm in norms {
                let before = vec![noise(700, 1), noise(9, 2), vec![1.0]];
                let what = format!("norm {norm}, {policy:?} on {device:?}");
                let (expected, expected_after) = clip_on_the_cpu(&mut plan, &before, &[0, 1, 0], Some(norm));
                let (model, mut grads) = gradients_on(&device, &before);
                // A number, and tensors on both devices.
                let clipped = match norm.to_bits() % 3 {
                    0 => clipper.clip_with_norm(&mut grads, &model, norm),
                    1 => clipper.clip_with_norm(&mut grads, &model, vector(&[norm], &device)),
                    _ => clipper.clip_with_norm(
                        &mut grads,
                        &model,
                        vector(&[norm], &devices()[0].clone().autodiff()),
                    ),
                };
                let clipped = clipped.unwrap();
                assert_eq!(clipped.used_kernels(), device == Device::default());
                assert_same_records(&clipped.records().unwrap(), &expected, &what);
                assert!(
                    values(clipped.factor()).iter().zip(&expected).all(|(&f, r)| close(f, r.factor)),
                    "{what}"
                );
                assert_eq!(clipped.skipped(), expected[0].skip(), "{what}");
                if !clipped.skipped() {
                    assert_same_elements(&model.biases_of(&grads), &expected_after, &what);
                }
            }
            assert_same_counts(&clipper.step_counts().unwrap(), plan.step_counts(), "counts");
        }
    }
}

/// A measured norm, joined on the device, scales another module. The host reads nothing.
#[test]
fn a_norm_that_another_clip_measured_scales_the_gradients() {
    for device in devices() {
        let shards = [vec![noise(5000, 1)], vec![noise(3, 2), noise(70, 3)]];
        let measure = clipper(Clip::by_global_norm(1.0).coefficient_only());
        let scale = clipper(Clip::by_supplied_norm(1.0));
        let mut models: Vec<_> = shards.iter().map(|shard| gradients_on(&device, shard)).collect();
        let squares =
            models.iter_mut().map(|(model, grads)| measure.clip(grads, model).unwrap().norm().square());
        let joint = squares.reduce(|a, b| a + b).unwrap().sqrt();
        let after: Vec<_> = models
            .iter_mut()
            .flat_map(|(model, grads)| {
                scale.clip_with_norm(grads, model, joint.clone()).unwrap();
                model.biases_of(grads)
            })
            .collect();
        assert_clipped(&shards.concat(), &after, joint, 1.0);
    }
}

#[test]
fn a_norm_is_supplied_exactly_if_the_clip_takes_one() {
    use gradclip::Error as Core;
    for device in devices() {
        let before = vec![vec![3.0, 4.0]];
        let (model, mut grads) = gradients_on(&device, &before);
        let supplied = clipper(Clip::by_supplied_norm(1.0));
        assert!(matches!(supplied.clip(&mut grads, &model), Err(Error::NormNotSupplied)));
        let measured = clipper(Clip::by_global_norm(1.0));
        assert!(matches!(
            measured.clip_with_norm(&mut grads, &model, 5.0),
            Err(Error::Clip(Core::UnexpectedNorm))
        ));
        let by_value = clipper(Clip::by_value(1.0));
        assert!(matches!(
            by_value.clip_with_norm(&mut grads, &model, 5.0),
            Err(Error::Clip(Core::UnexpectedNorm))
        ));
        for norm in [&[][..], &[1.0, 2.0]] {
            let error = supplied.clip_with_norm(&mut grads, &model, vector(norm, &device)).unwrap_err();
            assert!(matches!(error, Error::SuppliedNorm { elements } if elements == norm.len()), "{error}");
        }
        let mut several = burn::optim::MultiGradientsParams::default();
        several.grads.push((grads, device.clone()));
        assert!(matches!(supplied.clip_multi(&mut several, &model), Err(Error::NormNotSupplied)));
        assert_eq!(model.biases_of(&several.grads[0].0), before);
    }
}
