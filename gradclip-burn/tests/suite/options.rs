//! Groups, statistics, clips that change nothing, limits that change, and what is refused.

use burn::module::Module;
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::Device;
use burn::tensor::quantization::QuantScheme;
use gradclip::ZClip;
use gradclip_burn::{Clip, Epsilon, Error, GradClipper, NormType};

use crate::{Model, assert_clipped, clipper, devices, noise, values, vector};

#[test]
fn groups_have_norms_and_limits_of_their_own() {
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

/// The optimizer multiplies by the factor, without a wait and without a pass over the gradients.
#[test]
fn the_coefficient_alone_changes_nothing() {
    for device in devices() {
        let before = vec![noise(5000, 1), noise(7, 2)];
        let (model, mut grads) = Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        let clipper = clipper(Clip::by_global_norm(0.5).loss_scale(8.0).coefficient_only());
        let clipped = clipper.clip(&mut grads, &model).unwrap();
        assert_eq!(model.biases_of(&grads), before);
        assert_eq!(clipped.by_kernels(), device == Device::default());
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
fn a_limit_may_follow_a_schedule() {
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
                // That of a call is for the call.
                clipper.set_clip(Clip::by_value(1.0)).unwrap();
            }
        }
    }
}

#[test]
fn a_clip_of_a_call_keeps_the_groups() {
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

#[test]
fn what_means_nothing_is_refused() {
    use gradclip::Error as Core;
    let refused = |clip| match GradClipper::new(clip) {
        Err(Error::Clip(error)) => error,
        other => panic!("{other:?}"),
    };
    let norm = Clip::by_global_norm;
    assert!(matches!(refused(norm(-1.0)), Core::MaxNorm { given: -1.0 }));
    assert!(matches!(refused(norm(f32::NAN)), Core::MaxNorm { .. }));
    assert!(matches!(refused(norm(1.0).norm_type(NormType::P(f32::NAN))), Core::NormType { .. }));
    assert!(matches!(refused(norm(1.0).loss_scale(0.0)), Core::LossScale { given: 0.0 }));
    assert!(matches!(refused(norm(1.0).epsilon(Epsilon::Value(f32::NAN))), Core::Epsilon { .. }));
    assert!(matches!(refused(Clip::by_value(-1.0)), Core::ClipValue { .. }));
    assert!(matches!(refused(Clip::by_value(1.0).coefficient_only()), Core::NeedsNorm { .. }));
    assert!(matches!(GradClipper::by_value(f32::NAN), Err(Error::Clip(Core::ClipValue { .. }))));
    assert!(matches!(GradClipper::by_global_norm(-2.0), Err(Error::Clip(Core::MaxNorm { .. }))));

    // Groups may differ in their limits only; a clipper that was refused a change stays as it was.
    let with_group =
        |clip| GradClipper::by_global_norm(1.0).and_then(|clipper| clipper.group(clip, |_| true));
    assert!(with_group(norm(2.0)).is_ok());
    assert!(matches!(
        with_group(Clip::by_norm(2.0)),
        Err(Error::Clip(Core::GroupsDiffer { first: 0, second: 1, .. }))
    ));
    assert!(matches!(with_group(norm(-2.0)), Err(Error::Clip(Core::InGroup { group: 1, .. }))));
    let mut clipper = clipper(norm(1.0));
    assert!(clipper.set_clip(norm(-1.0)).is_err());
    let device = Device::flex();
    let (model, mut grads) = Model::with_gradients(vec![vector(&[3.0, 4.0], &device)]);
    assert!(clipper.clip_grad_norm(&mut grads, &model, norm(-1.0)).is_err());
    assert_eq!(model.biases_of(&grads).concat(), [3.0, 4.0]);
    let clipped = clipper.clip(&mut grads, &model).unwrap();
    assert_clipped(&[vec![3.0, 4.0]], &model.biases_of(&grads), clipped.norm(), 1.0);
}

#[test]
fn what_only_gradclip_can_is_named() {
    let unsupported = |clip| match GradClipper::new(clip) {
        Err(Error::Unsupported { option }) => option,
        other => panic!("{other:?}"),
    };
    let norm = Clip::by_global_norm(1.0);
    assert_eq!(unsupported(norm.z_clip(ZClip::default())), "Clip::z_clip");
    assert_eq!(unsupported(norm.count_steps()), "Clip::count_steps");
    assert_eq!(unsupported(Clip::by_supplied_norm(1.0)), "Clip::by_supplied_norm");
    assert_eq!(unsupported(Clip::by_parameter_norm(0.01, 1e-3)), "Clip::by_parameter_norm");
}

#[test]
fn a_gradient_that_cannot_be_clipped_is_named() {
    let device = Device::flex();
    let (model, mut grads) =
        Model::with_gradients(vec![vector(&[3.0, 4.0], &device), vector(&[0.0; 32], &device)]);
    let quantized = vector(&noise(32, 1), &device).quantize_dynamic(&QuantScheme::default());
    grads.register(model.biases[1].id, quantized.clone());
    let clipper = clipper(Clip::by_global_norm(1.0));
    let is_named = |error: &Error| {
        assert!(matches!(error, Error::Type { parameter, .. } if parameter == "biases.1"), "{error}");
    };
    let untouched = |grads: &GradientsParams| {
        assert_eq!(values(grads.get::<1>(model.biases[0].id).unwrap()), [3.0, 4.0]);
        let left = grads.get::<1>(model.biases[1].id).unwrap();
        assert_eq!(values(left.dequantize()), values(quantized.clone().dequantize()));
    };
    is_named(&clipper.clip(&mut grads, &model).unwrap_err());
    untouched(&grads);

    // Of several devices too, before anything is summed.
    let mut others = GradientsParams::new();
    others.register(model.biases[0].id, vector(&[1.0, 1.0], &device));
    let mut several = MultiGradientsParams::default();
    several.grads.push((grads, device.clone()));
    several.grads.push((others, device.clone()));
    is_named(&clipper.clip_multi(&mut several, &model).unwrap_err());
    untouched(&several.grads[0].0);
}

/// Burn's container would panic.
#[test]
fn a_gradient_of_another_rank_is_named_and_everything_stays() {
    for device in devices() {
        let model = Model::new(&[[2, 1], [3, 4]], &[2], &device);
        let register = |grads: &mut GradientsParams| {
            grads.register(model.weights[0].id, vector(&[3.0, 4.0], &device).reshape([2, 1]));
            grads.register(model.weights[1].id, vector(&noise(12, 1), &device));
            grads.register(model.biases[0].id, vector(&[5.0, 6.0], &device));
        };
        let untouched = |grads: &GradientsParams| {
            assert_eq!(values(grads.get::<2>(model.weights[0].id).unwrap()), [3.0, 4.0]);
            assert_eq!(values(grads.get::<1>(model.weights[1].id).unwrap()), noise(12, 1));
            assert_eq!(values(grads.get::<1>(model.biases[0].id).unwrap()), [5.0, 6.0]);
        };
        let is_named = |error: &Error| {
            assert!(
                matches!(error, Error::Rank { parameter, rank: 2 } if parameter == "weights.1"),
                "{error}"
            );
        };
        let clipper = clipper(Clip::by_global_norm(1.0));
        let mut grads = GradientsParams::new();
        register(&mut grads);
        is_named(&clipper.clip(&mut grads, &model).unwrap_err());
        untouched(&grads);

        let mut several = MultiGradientsParams::default();
        several.grads.push((GradientsParams::new(), device.clone()));
        several.grads.push((grads, device.clone()));
        is_named(&clipper.clip_multi(&mut several, &model).unwrap_err());
        untouched(&several.grads[1].0);
    }
}

#[test]
fn a_group_without_a_parameter_is_named() {
    for device in devices() {
        let all = |_: &str| true;
        let typo = |path: &str| path.starts_with("discriminator.");
        let clip = Clip::by_global_norm;
        let refuses = |clipper: GradClipper, group: usize| {
            let (model, mut grads) = Model::with_gradients(vec![vector(&[3.0, 4.0], &device)]);
            let error = clipper.clip(&mut grads, &model).unwrap_err();
            assert!(matches!(&error, Error::EmptyGroup { group: found, .. } if *found == group), "{error}");
            assert!(
                error.to_string().contains(&format!("group {group}; the module's parameters are biases.0")),
                "{error}"
            );
            assert_eq!(model.biases_of(&grads).concat(), [3.0, 4.0]);
            let mut several = MultiGradientsParams::default();
            several.grads.push((grads, device.clone()));
            assert!(matches!(clipper.clip_multi(&mut several, &model), Err(Error::EmptyGroup { .. })));
            assert_eq!(model.biases_of(&several.grads[0].0).concat(), [3.0, 4.0]);
        };
        refuses(clipper(clip(1.0)).group(clip(0.1), typo).unwrap(), 1);
        refuses(clipper(Clip::by_value(1.0)).group(Clip::by_value(0.1), typo).unwrap(), 1);
        // An earlier group has all that it matches.
        refuses(clipper(clip(1.0)).group(clip(0.1), all).unwrap().group(clip(0.2), all).unwrap(), 2);

        // A parameter without a gradient is one, and what belongs to no group may be nothing.
        let model = Model::new(&[], &[2, 3], &device);
        let mut grads = GradientsParams::new();
        grads.register(model.biases[0].id, vector(&[3.0, 4.0], &device));
        let clipper = clipper(clip(9.0))
            .group(clip(1.0), |path| path == "biases.0")
            .unwrap()
            .group(clip(1.0), |path| path == "biases.1")
            .unwrap();
        assert_eq!(values(clipper.clip(&mut grads, &model).unwrap().norm()), [0.0, 5.0, 0.0]);
    }
}

#[test]
fn gradients_of_another_model_are_an_error() {
    for device in devices() {
        let device = device.autodiff();
        let [own, other] = [0; 2].map(|_| Model::new(&[], &[2, 2], &device));
        let loss = || (other.biases[0].val() * vector(&[3.0, 4.0], &device)).sum().backward();
        let clipper = clipper(Clip::by_global_norm(1.0));
        let count = |error: Error| match error {
            Error::NoGradients { given, parameters } => {
                assert_eq!(parameters, ["biases.0", "biases.1"]);
                given
            }
            other => panic!("{other}"),
        };
        let mut grads = GradientsParams::from_grads(loss(), &other);
        assert_eq!(count(clipper.clip(&mut grads, &own).unwrap_err()), 1);
        assert_eq!(values(grads.get::<1>(other.biases[0].id).unwrap()), [3.0, 4.0]);
        // Burn's container takes only what is of the model.
        let mut grads = GradientsParams::from_grads(loss(), &own);
        assert_eq!(count(clipper.clip(&mut grads, &own).unwrap_err()), 0);
        assert_eq!(count(clipper.clip_multi(&mut MultiGradientsParams::default(), &own).unwrap_err()), 0);

        // A module that is frozen has no gradients, and that is right.
        let mut grads = GradientsParams::from_grads(loss(), &other);
        let frozen = own.no_grad();
        let clipped = clipper.clip(&mut grads, &frozen).unwrap();
        assert_eq!((values(clipped.norm()), grads.len()), (vec![0.0], 1));
    }
}
