//! Rejected input: invalid and unsupported options, gradients that cannot be clipped, and groups without a parameter.

use burn::module::Module;
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::Device;
use burn::tensor::quantization::QuantScheme;
use gradclip_burn::{AutoClip, Clip, Epsilon, Error, GradClipper, LossScale, NormType, ZClip};

use crate::{Model, assert_clipped, clipper, devices, noise, values, vector};

#[test]
fn invalid_options_are_refused() {
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
    let percentile = AutoClip { percentile: 101.0, ..AutoClip::default() };
    assert!(matches!(refused(norm(1.0).auto_clip(percentile)), Core::AutoClip { .. }));
    let two_rules = norm(1.0).auto_clip(AutoClip::default()).z_clip(ZClip::default());
    assert!(matches!(refused(two_rules), Core::ConflictingLimits));
    assert!(matches!(refused(Clip::by_value(-1.0)), Core::ClipValue { .. }));
    assert!(matches!(refused(Clip::by_value(1.0).coefficient_only()), Core::NeedsNorm { .. }));
    assert!(matches!(GradClipper::by_value(f32::NAN), Err(Error::Clip(Core::ClipValue { .. }))));
    assert!(matches!(GradClipper::by_global_norm(-2.0), Err(Error::Clip(Core::MaxNorm { .. }))));

    // Groups may differ only in their limits. A rejected change leaves the clipper unchanged.
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

/// gradclip-burn supports every option that gradclip's GPU plans support.
#[test]
fn every_option_is_accepted() {
    let norm = Clip::by_global_norm(1.0);
    let options = [
        norm.dynamic_loss_scale(LossScale::default()).tensor_stats().count_steps(),
        norm.auto_clip(AutoClip::default()).skip_above(9.0).max_consecutive_skips(3),
        norm.z_clip(ZClip::default()).coefficient_only().loss_scale(8.0).norm_type(NormType::P(0.5)),
        Clip::by_norm(1.0),
        Clip::by_rms(1.0).epsilon(Epsilon::Value(1e-8)),
        Clip::by_parameter_norm(0.01, 1e-3),
        Clip::by_supplied_norm(1.0),
        Clip::by_value(1.0).loss_scale(8.0),
        Clip::by_value_range(-1.0, 2.0),
    ];
    for clip in options {
        assert!(GradClipper::new(clip).is_ok(), "{clip:?}");
    }
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
    let assert_unchanged = |grads: &GradientsParams| {
        assert_eq!(values(grads.get::<1>(model.biases[0].id).unwrap()), [3.0, 4.0]);
        let left = grads.get::<1>(model.biases[1].id).unwrap();
        assert_eq!(values(left.dequantize()), values(quantized.clone().dequantize()));
    };
    is_named(&clipper.clip(&mut grads, &model).unwrap_err());
    assert_unchanged(&grads);

    // The same error for gradients on several devices, before they are summed.
    let mut others = GradientsParams::new();
    others.register(model.biases[0].id, vector(&[1.0, 1.0], &device));
    let mut several = MultiGradientsParams::default();
    several.grads.push((grads, device.clone()));
    several.grads.push((others, device.clone()));
    is_named(&clipper.clip_multi(&mut several, &model).unwrap_err());
    assert_unchanged(&several.grads[0].0);
}

/// Burn's container panics on access to such a gradient.
#[test]
fn a_gradient_of_another_rank_is_named_and_all_gradients_stay_unchanged() {
    for device in devices() {
        let model = Model::new(&[[2, 1], [3, 4]], &[2], &device);
        let register = |grads: &mut GradientsParams| {
            grads.register(model.weights[0].id, vector(&[3.0, 4.0], &device).reshape([2, 1]));
            grads.register(model.weights[1].id, vector(&noise(12, 1), &device));
            grads.register(model.biases[0].id, vector(&[5.0, 6.0], &device));
        };
        let assert_unchanged = |grads: &GradientsParams| {
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
        assert_unchanged(&grads);

        let mut several = MultiGradientsParams::default();
        several.grads.push((GradientsParams::new(), device.clone()));
        several.grads.push((grads, device.clone()));
        is_named(&clipper.clip_multi(&mut several, &model).unwrap_err());
        assert_unchanged(&several.grads[1].0);
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
        // The first group takes every parameter that the second matches.
        refuses(clipper(clip(1.0)).group(clip(0.1), all).unwrap().group(clip(0.2), all).unwrap(), 2);

        // A group may consist of parameters without gradients, and all parameters may belong to groups.
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
        let [model, other] = [0; 2].map(|_| Model::new(&[], &[2, 2], &device));
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
        assert_eq!(count(clipper.clip(&mut grads, &model).unwrap_err()), 1);
        assert_eq!(values(grads.get::<1>(other.biases[0].id).unwrap()), [3.0, 4.0]);
        // Burn's container takes only gradients of the model.
        let mut grads = GradientsParams::from_grads(loss(), &model);
        assert_eq!(count(clipper.clip(&mut grads, &model).unwrap_err()), 0);
        assert_eq!(count(clipper.clip_multi(&mut MultiGradientsParams::default(), &model).unwrap_err()), 0);

        // A frozen module has no gradients, which is not an error.
        let mut grads = GradientsParams::from_grads(loss(), &other);
        let frozen = model.no_grad();
        let clipped = clipper.clip(&mut grads, &frozen).unwrap();
        assert_eq!((values(clipped.norm()), grads.len()), (vec![0.0], 1));
    }
}
