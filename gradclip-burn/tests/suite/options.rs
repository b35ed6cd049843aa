//! Groups, statistics, measuring alone, and what is refused.

use burn::tensor::Device;
use burn::tensor::quantization::QuantScheme;
use gradclip_burn::{Error, GradClipper, NormType};

use crate::{Model, assert_clipped, devices, noise, values, vector};

#[test]
fn groups_have_norms_and_limits_of_their_own() {
    for device in devices() {
        let before = vec![noise(5000, 1), noise(10, 2), noise(3, 3), noise(4100, 4)];
        let (model, mut grads) = Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        let clipper = GradClipper::by_global_norm(1.0)
            .group(0.25, |path| path == "biases.1" || path == "biases.3")
            .group(9.0, |path| path.starts_with("biases.") && path.ends_with('2'))
            .tensor_stats();
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
        let clipper = GradClipper::by_global_norm(1.0).tensor_stats();
        let stats = clipper.measure(&mut grads, &model).unwrap().tensor_stats().unwrap();
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

#[test]
fn measuring_changes_nothing() {
    for device in devices() {
        let before = vec![noise(5000, 1), noise(7, 2)];
        let (model, mut grads) = Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        let measured = GradClipper::by_global_norm(1e-3).measure(&mut grads, &model).unwrap();
        assert_eq!(model.biases_of(&grads), before);
        assert_eq!(measured.by_kernels(), device == Device::default());
        let norm = f64::from(values(measured.norm())[0]);
        assert!((norm / crate::norm_of(&before) - 1.0).abs() < 1e-6);
    }
}

#[test]
fn a_limit_may_follow_a_schedule() {
    for device in devices() {
        let mut clipper = GradClipper::by_global_norm(1.0);
        for limit in [1.0, 0.5, 2.0, 0.5] {
            clipper.set_limit(limit);
            let before = vec![vec![3.0, 4.0]];
            let (model, mut grads) = Model::with_gradients(vec![vector(&before[0], &device)]);
            let clipped = clipper.clip(&mut grads, &model).unwrap();
            assert_clipped(&before, &model.biases_of(&grads), clipped.norm(), f64::from(limit));
        }
    }
}

#[test]
fn what_means_nothing_is_refused_and_gradients_stay() {
    for device in devices() {
        let refusals = [
            GradClipper::by_global_norm(-1.0),
            GradClipper::by_global_norm(1.0).norm_type(NormType::P(3.0)),
            GradClipper::by_global_norm(1.0).loss_scale(0.0),
            GradClipper::by_global_norm(1.0).epsilon(gradclip::Epsilon::Value(f32::NAN)),
            GradClipper::by_global_norm(1.0).group(-2.0, |_| true),
            GradClipper::by_value(f32::NAN),
            GradClipper::by_value(-1.0),
        ];
        for (index, clipper) in refusals.into_iter().enumerate() {
            let (model, mut grads) = Model::with_gradients(vec![vector(&[3.0, 4.0], &device)]);
            let error = clipper.clip(&mut grads, &model).unwrap_err();
            let expected = match index {
                0 | 4 => matches!(error, Error::MaxNorm { .. }),
                1 => matches!(error, Error::NormType { .. }),
                2 => matches!(error, Error::LossScale { .. }),
                3 => matches!(error, Error::Epsilon { .. }),
                _ => matches!(error, Error::Bounds { .. }),
            };
            assert!(expected, "{index}: {error}");
            assert_eq!(model.biases_of(&grads).concat(), [3.0, 4.0]);
        }
    }
}

#[test]
fn a_gradient_that_cannot_be_clipped_is_named() {
    let device = Device::flex();
    let (model, mut grads) =
        Model::with_gradients(vec![vector(&[3.0, 4.0], &device), vector(&[0.0; 32], &device)]);
    let quantized = vector(&noise(32, 1), &device).quantize_dynamic(&QuantScheme::default());
    grads.register(model.biases[1].id, quantized.clone());
    let error = GradClipper::by_global_norm(1.0).clip(&mut grads, &model).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { parameter, .. } if parameter == "biases.1"), "{error}");
    assert_eq!(values(grads.get::<1>(model.biases[0].id).unwrap()), [3.0, 4.0]);
    let left = grads.get::<1>(model.biases[1].id).unwrap();
    assert_eq!(values(left.dequantize()), values(quantized.dequantize()));
}
