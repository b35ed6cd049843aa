//! Limits that are percentiles of the last norms, compared with gradclip's CPU path step by step.

use burn::optim::GradientsParams;
use gradclip::cpu;
use gradclip_burn::{AutoClip, Clip, ClipRecord, Error, GradClipper, NonFinite, NormType, NormWindow};

use crate::state::{
    SIZES, assert_same_counts, assert_same_elements, assert_same_records, clip_on_the_cpu, close,
    gradients_on, step,
};
use crate::{clipper, devices, noise, values, vector};

fn auto_clip(clip: Clip, percentile: f32, window: u32) -> Clip {
    clip.auto_clip(AutoClip { percentile, window })
}

fn assert_same_windows(found: &[NormWindow], expected: &[NormWindow], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let are_close = found.norms.iter().zip(&expected.norms).all(|(&one, &other)| close(one, other));
        assert!(
            are_close && found.norms.len() == expected.norms.len(),
            "{what}: {found:?}, not {expected:?}"
        );
    }
}

/// Returns sizes of gradients: extremes, repetitions, and more different ones than the smaller windows hold.
fn sizes() -> Vec<f32> {
    let noisy = noise(20, 7).into_iter().map(|x| 1.0 + x.abs() * 3.0);
    [2.0, 1.0, 1.0].into_iter().chain(SIZES).chain(noisy).collect()
}

#[test]
fn percentiles_of_past_norms_agree_with_the_cpu_path() {
    let unlimited = Clip::by_global_norm(f32::INFINITY);
    let clips: [(Clip, &[usize]); 10] = [
        (auto_clip(unlimited, 10.0, 1024), &[0; 3]),
        (auto_clip(unlimited, 50.0, 4).count_steps(), &[0; 3]),
        (auto_clip(Clip::by_global_norm(2.0), 75.0, 5).non_finite(NonFinite::Zero), &[0, 1, 0]),
        (auto_clip(unlimited, 0.0, 2).norm_type(NormType::Inf), &[0; 3]),
        (auto_clip(unlimited, 100.0, 3), &[0; 3]),
        (auto_clip(unlimited, 30.0, 1).count_steps(), &[0; 3]),
        (auto_clip(unlimited, 99.9, 300).skip_above(9.0).non_finite(NonFinite::Skip), &[0; 3]),
        (auto_clip(Clip::by_norm(3.0), 33.3, 6).norm_type(NormType::L1).loss_scale(8.0), &[0; 3]),
        (auto_clip(Clip::by_rms(0.9), 60.0, 7).coefficient_only().tensor_stats(), &[0, 0, 1]),
        (auto_clip(unlimited, 20.0, 16).norm_type(NormType::P(3.0)), &[0; 3]),
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
            let mut clipped_steps = 0;
            for (index, size) in sizes().into_iter().enumerate() {
                let what = format!("step {index} of {clip:?} on {device:?}");
                let before = step(size);
                let (expected, expected_after) = clip_on_the_cpu(&mut plan, &before, groups, None);
                let (model, mut grads) = gradients_on(&device, &before);
                let clipped = clipper.clip(&mut grads, &model).unwrap();
                assert_eq!(clipped.used_kernels(), device == devices()[0]);
                let records = clipped.records().unwrap();
                assert_same_records(&records, &expected, &what);
                clipped_steps += usize::from(expected.iter().any(ClipRecord::clipped));
                let factors = values(clipped.factor());
                assert!(factors.iter().zip(&records).all(|(&f, record)| close(f, record.factor)), "{what}");
                assert_eq!(clipped.skipped(), expected.iter().any(ClipRecord::skip), "{what}");
                if !clipped.skipped() {
                    assert_same_elements(&model.biases_of(&grads), &expected_after, &what);
                }
                if index % 6 == 5 {
                    assert_same_windows(&clipper.norm_windows().unwrap(), plan.norm_windows(), &what);
                }
            }
            assert!(clipped_steps > 1, "{clip:?} has clipped {clipped_steps} steps");
            let counts = clipper.step_counts().unwrap();
            if !counts.is_empty() {
                assert_same_counts(&counts, plan.step_counts(), "counts");
            }
        }
    }
}

/// Each record has a workgroup on the device, and more records than one workgroup has invocations.
#[test]
fn each_of_many_gradients_has_its_own_window() {
    for device in devices() {
        let lengths: Vec<usize> =
            (0..if device == devices()[0] { 300 } else { 30 }).map(|i| 1 + i % 7).collect();
        let clip = auto_clip(Clip::by_norm(1.5), 40.0, 3);
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
        assert_same_windows(&clipper.norm_windows().unwrap(), plan.norm_windows(), "window");
    }
}

#[test]
fn a_supplied_norm_enters_the_window() {
    for device in devices() {
        let clip = auto_clip(Clip::by_supplied_norm(f32::INFINITY), 50.0, 8);
        let (clipper, mut plan) = (clipper(clip), cpu::ClipPlan::new(&[clip]).unwrap());
        for norm in [1.0, 3.0, 0.0, f32::NAN, 2.0, f32::INFINITY, -1.0, 3e38, 1e-30, 5.0] {
            let before = vec![vec![1.0, 2.0], vec![-1.0]];
            let (expected, expected_after) = clip_on_the_cpu(&mut plan, &before, &[0; 2], Some(norm));
            let (model, mut grads) = gradients_on(&device, &before);
            let clipped = clipper.clip_with_norm(&mut grads, &model, norm).unwrap();
            let what = format!("norm {norm} on {device:?}");
            assert_same_records(&clipped.records().unwrap(), &expected, &what);
            assert_same_elements(&model.biases_of(&grads), &expected_after, &what);
        }
        assert_same_windows(&clipper.norm_windows().unwrap(), plan.norm_windows(), "window");
    }
}

#[test]
fn clones_share_the_windows_and_a_checkpoint_restores_them() {
    for device in devices() {
        let clip = auto_clip(Clip::by_global_norm(f32::INFINITY), 60.0, 5);
        let original = clipper(clip);
        let clone = original.clone();
        let run = |clipper: &GradClipper, sizes: &[f32]| -> Vec<ClipRecord> {
            let record = |&size: &f32| {
                let (model, mut grads) = gradients_on(&device, &step(size));
                clipper.clip(&mut grads, &model).unwrap().records().unwrap()[0]
            };
            sizes.iter().map(record).collect()
        };
        assert!(original.norm_windows().unwrap().is_empty());
        run(&original, &[1.0, 1.1, 0.9]);
        run(&clone, &[1.0, 1.2, 0.8, 1.05]);
        let saved = pollster::block_on(clone.norm_windows_async()).unwrap();
        assert_eq!(saved[0].norms.len(), 5);
        assert_eq!(saved, original.norm_windows().unwrap());

        let restored = clipper(clip);
        restored.set_norm_windows(&saved).unwrap();
        assert_eq!(restored.norm_windows().unwrap(), saved);
        let more = [0.5, 40.0, 1.1, 0.9];
        let expected = run(&original, &more);
        assert!(expected[1].clipped() && !expected[0].clipped());
        assert_eq!(run(&restored, &more), expected, "on {device:?}");
        assert_eq!(restored.norm_windows().unwrap(), original.norm_windows().unwrap());

        // An empty checkpoint starts again.
        restored.set_norm_windows(&[]).unwrap();
        run(&restored, &[1.0]);
        assert_eq!(restored.norm_windows().unwrap()[0].norms.len(), 1);

        // A window of another length keeps the latest norms.
        for window in [3, 8, 1] {
            let mut resized = clipper(clip);
            run(&resized, &[1.0, 1.1, 0.9, 1.2, 0.8, 1.05]);
            let mut expected = resized.norm_windows().unwrap().remove(0).norms;
            assert_eq!(expected.len(), 5);
            resized.set_clip(auto_clip(Clip::by_global_norm(f32::INFINITY), 60.0, window)).unwrap();
            expected.push(run(&resized, &[2.0])[0].total_norm);
            let surplus = expected.len().saturating_sub(window as usize);
            assert_eq!(resized.norm_windows().unwrap()[0].norms, expected[surplus..], "{window}");
        }
    }
}

/// The kernels and the tensor operations continue each other's windows.
#[test]
fn the_windows_follow_the_gradients_to_another_device() {
    let clip = auto_clip(Clip::by_global_norm(f32::INFINITY), 45.0, 6);
    let (clipper, mut plan) = (clipper(clip), cpu::ClipPlan::new(&[clip]).unwrap());
    for (index, size) in sizes().into_iter().enumerate() {
        let device = &devices()[index / 2 % 2];
        let (expected, _) = clip_on_the_cpu(&mut plan, &step(size), &[0; 3], None);
        let (model, mut grads) = gradients_on(device, &step(size));
        let clipped = clipper.clip(&mut grads, &model).unwrap();
        assert_same_records(&clipped.records().unwrap(), &expected, &format!("step {index}"));
    }
    assert_same_windows(&clipper.norm_windows().unwrap(), plan.norm_windows(), "window");
}

#[test]
fn windows_that_do_not_fit_are_an_error_and_change_nothing() {
    use gradclip::Error as Core;
    for device in devices() {
        let clipper = clipper(auto_clip(Clip::by_norm(1.0), 50.0, 2));
        let (model, mut grads) = gradients_on(&device, &step(1.0));
        clipper.clip(&mut grads, &model).unwrap();
        let windows = clipper.norm_windows().unwrap();

        // One gradient less, and another parameter.
        let refuses = |gradients: [usize; 2]| {
            let (model, _) = gradients_on(&device, &vec![vec![1.0; 2]; 4]);
            let mut grads = GradientsParams::new();
            for index in gradients {
                grads.register(model.biases[index].id, vector(&[3.0, 4.0], &device));
            }
            let error = clipper.clip(&mut grads, &model).unwrap_err();
            for index in gradients {
                assert_eq!(values(grads.get::<1>(model.biases[index].id).unwrap()), [3.0, 4.0]);
            }
            error
        };
        let error = refuses([0, 1]);
        assert!(
            matches!(error, Error::Clip(Core::StateCount { what: "norm windows", given: 3, records: 2 })),
            "{error}"
        );
        clipper.set_norm_windows(&windows[..2]).unwrap();
        let (model, mut grads) = gradients_on(&device, &[vec![1.0], vec![2.0]]);
        clipper.clip(&mut grads, &model).unwrap();
        let windows = clipper.norm_windows().unwrap();
        let error = refuses([0, 3]);
        assert!(matches!(&error, Error::OtherGradients { given, .. } if given[1] == "biases.3"), "{error}");
        assert_eq!(clipper.norm_windows().unwrap(), windows);

        for norms in [vec![1.0; 3], vec![0.0], vec![1.0, f32::NAN], vec![f32::INFINITY], vec![-1.0]] {
            let refused = clipper.set_norm_windows(&[windows[0].clone(), NormWindow { norms }]);
            assert!(matches!(refused, Err(Error::Clip(Core::NormWindow { record: 1, .. }))));
        }
        assert_eq!(clipper.norm_windows().unwrap(), windows);
        let plain = crate::clipper(Clip::by_global_norm(1.0));
        assert!(matches!(plain.set_norm_windows(&[]), Err(Error::Clip(Core::NotEnabled { .. }))));
    }
}
