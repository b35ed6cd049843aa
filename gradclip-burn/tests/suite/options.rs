//! Groups, statistics, `coefficient_only`, and limits that change.

use burn::tensor::Device;
use gradclip_burn::{Clip, Error};

use crate::{Model, assert_clipped, clipper, devices, noise, values, vector};

#[test]
fn each_group_has_its_own_norm_and_limit() {
    for device in devices() {
        let before = vec![noise(5000, 1), noise(10, 2), noise(3, 3), noise(4100, 4)];
        let (model, mut grads) = Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        let clip = |limit| Clip::by_global_norm(limit).tensor_stats();
        let clipper = clipper(clip(1.0))
            .group(clip(0.25), |path| path == "biases.1" || path == "biases.3")
            .unwrap()
            .group(clip(9.0), |path| path.starts_with("biases.") && path.ends_with('2'))
            .unwrap();
        let clipped = clipper.clip(&mut grads, &model).unwrap();
        let after = model.biases_of(&grads);
        let norms = clipped.norm();
        let one = |group: usize| norms.clone().narrow(0, group, 1);
        assert_clipped(&before[..1], &after[..1], one(0), 1.0);
        let pick = |of: &[Vec<f32>]| vec![of[1].clone(), of[3].clone()];
        assert_clipped(&pick(&before), &pick(&after), one(1), 0.25);
        assert_eq!(after[2], before[2], "within its limit");
        assert_eq!(clipped.records().unwrap().len(), 3);
    }
}

#[test]
fn every_parameter_has_statistics_under_its_path() {
    for device in devices() {
        let (model, mut grads) = Model::with_gradients(vec![
            vector(&[3.0, 0.0, -4.0, 0.0], &device),
            vector(&[f32::NAN, 1.0, f32::INFINITY], &device),
            vector(&[-2.0; 10_000], &device),
        ]);
        let clipper = clipper(Clip::by_global_norm(1.0).tensor_stats());
        let stats = clipper.clip(&mut grads, &model).unwrap().tensor_stats().unwrap();
        let paths: Vec<_> = stats.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["biases.0", "biases.1", "biases.2"]);
        let stats: Vec<_> = stats.into_iter().map(|(_, stats)| stats).collect();
        assert_eq!(
            (stats[0].norm, stats[0].max_magnitude, stats[0].zeros, stats[0].non_finite),
            (5.0, 4.0, 2, 0)
        );
        assert!(stats[1].norm.is_nan() && stats[1].max_magnitude.is_nan());
        assert_eq!((stats[1].zeros, stats[1].non_finite), (0, 2));
        assert_eq!((stats[2].norm, stats[2].max_magnitude, stats[2].zeros), (200.0, 2.0, 0));
    }
}

/// The optimizer multiplies by the factor. The clip neither waits nor writes to the gradients.
#[test]
fn coefficient_only_changes_no_gradient() {
    for device in devices() {
        let before = vec![noise(5000, 1), noise(7, 2)];
        let (model, mut grads) = Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        let clipper = clipper(Clip::by_global_norm(0.5).loss_scale(8.0).coefficient_only());
        let clipped = clipper.clip(&mut grads, &model).unwrap();
        assert_eq!(model.biases_of(&grads), before);
        assert_eq!(clipped.used_kernels(), device == Device::default());
        let expected = crate::norm_of(&before) / 8.0;
        let norm = f64::from(values(clipped.norm())[0]);
        assert!((norm / expected - 1.0).abs() < 1e-5, "{norm}, not {expected}");
        let factor = clipped.factor();
        assert_eq!(values(factor.clone()), [clipped.records().unwrap()[0].factor]);
        let scaled = grads.get::<1>(model.biases[1].id).unwrap() * factor;
        let expected = 0.5 / (expected + 1e-6) / 8.0;
        for (scaled, before) in values(scaled).iter().zip(&before[1]) {
            let wanted = f64::from(*before) * expected;
            assert!((f64::from(*scaled) - wanted).abs() < 2e-5 * wanted.abs(), "{scaled}, not {wanted}");
        }
    }
}

#[test]
fn a_limit_can_follow_a_schedule() {
    for device in devices() {
        let mut clipper = clipper(Clip::by_global_norm(1.0));
        for limit in [1.0, 0.5, 2.0, 0.5] {
            for by_call in [false, true] {
                let before = vec![vec![3.0, 4.0]];
                let (model, mut grads) = Model::with_gradients(vec![vector(&before[0], &device)]);
                let clip = Clip::by_global_norm(limit);
                let clipped = if by_call {
                    clipper.clip_grad_norm(&mut grads, &model, clip).unwrap()
                } else {
                    clipper.set_clip(clip).unwrap();
                    clipper.clip(&mut grads, &model).unwrap()
                };
                assert_clipped(&before, &model.biases_of(&grads), clipped.norm(), f64::from(limit));
                // The clip of a call applies to that call only.
                clipper.set_clip(Clip::by_value(1.0)).unwrap();
            }
        }
    }
}

#[test]
fn the_limits_of_all_groups_can_follow_a_schedule() {
    use gradclip::Error as Core;
    for device in devices() {
        let clip = Clip::by_global_norm;
        let mut clipper = clipper(clip(1.0)).group(clip(0.25), |path| path == "biases.1").unwrap();
        let before = [noise(100, 1), noise(100, 2)];
        let check = |clipper: &gradclip_burn::GradClipper, given: Option<Clip>, limits: [f64; 2]| {
            let (model, mut grads) =
                Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
            let clipped = match given {
                Some(clip) => clipper.clip_grad_norm(&mut grads, &model, clip),
                None => clipper.clip(&mut grads, &model),
            };
            let (clipped, after) = (clipped.unwrap(), model.biases_of(&grads));
            for (group, limit) in limits.into_iter().enumerate() {
                let norm = clipped.norm().narrow(0, group, 1);
                assert_clipped(&before[group..=group], &after[group..=group], norm, limit);
            }
        };
        check(&clipper, None, [1.0, 0.25]);
        clipper.set_max_norms(&[0.5, 2.0]).unwrap();
        check(&clipper, None, [0.5, 2.0]);

        // A rejected change leaves the limits unchanged.
        let error =
            |clipper: &mut gradclip_burn::GradClipper, limits: &[f32]| match clipper.set_max_norms(limits) {
                Err(Error::Clip(error)) => error,
                other => panic!("{other:?}"),
            };
        assert!(matches!(error(&mut clipper, &[1.0]), Core::LimitCount { given: 1, groups: 2 }));
        assert!(matches!(error(&mut clipper, &[1.0, -1.0]), Core::InGroup { group: 1, .. }));
        assert!(matches!(error(&mut clipper, &[f32::NAN, 1.0]), Core::InGroup { group: 0, .. }));
        let mut by_value = crate::clipper(Clip::by_value(1.0));
        assert!(matches!(error(&mut by_value, &[1.0]), Core::NeedsNorm { .. }));
        check(&clipper, None, [0.5, 2.0]);

        // The other ways to set a limit replace only theirs.
        check(&clipper, Some(clip(0.125)), [0.125, 2.0]);
        clipper.set_clip(clip(0.75)).unwrap();
        check(&clipper, None, [0.75, 2.0]);
        clipper.set_max_norms(&[f32::INFINITY, 0.0]).unwrap();
        check(&clipper, None, [f64::INFINITY, 0.0]);
    }
}

#[test]
fn the_clip_of_a_call_keeps_the_groups() {
    for device in devices() {
        let clipper = clipper(Clip::by_global_norm(1.0))
            .group(Clip::by_global_norm(0.25), |path| path == "biases.1")
            .unwrap();
        let before = [noise(100, 1), noise(100, 2)];
        let (model, mut grads) = Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        let clipped = clipper.clip_grad_norm(&mut grads, &model, Clip::by_global_norm(2.0)).unwrap();
        let after = model.biases_of(&grads);
        for (group, limit) in [(0, 2.0), (1, 0.25)] {
            let norm = clipped.norm().narrow(0, group, 1);
            assert_clipped(&before[group..=group], &after[group..=group], norm, limit);
        }
    }
}
