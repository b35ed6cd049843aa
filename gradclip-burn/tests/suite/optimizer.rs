//! `ClippedOptimizer`, and loops of clip and step: clipped, skipped and failed steps.

use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer, MultiGradientsParams, SgdConfig};
use burn::tensor::Device;
use gradclip_burn::{Clip, ClippedOptimizer, Error, GradClipper, NonFinite, StepError};

use crate::{Model, clipper, devices, values, vector};

#[test]
fn a_step_uses_clipped_gradients() {
    for device in devices() {
        let device = device.autodiff();
        let mut model = Model::new(&[], &[2, 1], &device);
        let sgd = SgdConfig::new().init();
        let mut optimizer = ClippedOptimizer::new(sgd, clipper(Clip::by_global_norm(1.0)));
        assert!(optimizer.last().is_none());
        for step in 1..=3_u8 {
            let targets = [vector(&[3.0, 0.0], &device), vector(&[4.0], &device)];
            let losses = model.biases.iter().zip(targets).map(|(bias, target)| (bias.val() * target).sum());
            let loss = losses.reduce(|a, b| a + b).unwrap();
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(0.5, model, grads).unwrap();
            assert_eq!(values(optimizer.last().unwrap().norm()), [5.0]);
            // Without clipping, each step would add -1.5 and -2.
            let [a, b] = [&model.biases[0], &model.biases[1]].map(|bias| values(bias.val().inner())[0]);
            assert!((a + 0.3 * f32::from(step)).abs() < 1e-6, "{a}");
            assert!((b + 0.4 * f32::from(step)).abs() < 1e-6, "{b}");
        }
    }
}

/// The gradients of two parameters at each step. [`FINITE`] has the finite steps.
const STEPS: [[f32; 3]; 6] = [
    [3.0, 0.0, 4.0],
    [1.0, f32::NAN, 1.0],
    [0.5, -2.0, 0.25],
    [f32::INFINITY, 0.0, 0.0],
    [7.0, 7.0, f32::NEG_INFINITY],
    [-1.0, 0.1, 20.0],
];
const FINITE: [[f32; 3]; 3] = [STEPS[0], STEPS[2], STEPS[5]];

fn gradients(model: &Model, step: [f32; 3], device: &Device) -> GradientsParams {
    let (first, second) = step.split_at(2);
    let targets = [vector(first, device), vector(second, device)];
    let losses = model.biases.iter().zip(targets).map(|(bias, target)| (bias.val() * target).sum());
    GradientsParams::from_grads(losses.reduce(|a, b| a + b).expect("two losses").backward(), model)
}

/// Adam's step sizes depend on moments and on the step count, so a skipped step that is counted changes the next one.
fn adam() -> ModuleOptimizer {
    AdamConfig::new().init()
}

fn parameters(model: &Model) -> Vec<f32> {
    model.biases.iter().flat_map(|bias| values(bias.val().inner())).collect()
}

/// Trains a model and returns its parameters. `make` makes one step.
fn trained(
    device: &Device,
    steps: &[[f32; 3]],
    mut make: impl FnMut(Model, GradientsParams) -> Model,
) -> Vec<f32> {
    let model = Model::new(&[], &[2, 1], device);
    let trained = steps.iter().fold(model, |model, &step| {
        let gradients = gradients(&model, step, device);
        make(model, gradients)
    });
    parameters(&trained)
}

/// Trains in a loop of clip and step, as a user of Burn's optimizers writes it.
fn trained_by_a_loop(device: &Device, steps: &[[f32; 3]], clipper: &GradClipper) -> Vec<f32> {
    let mut optimizer = adam();
    trained(device, steps, |model, mut gradients| {
        clipper.clip(&mut gradients, &model).expect("no error");
        optimizer.step(0.1, model, gradients)
    })
}

#[test]
fn a_skipped_step_changes_nothing() {
    let clip = Clip::by_global_norm(1.0);
    for device in devices() {
        let device = device.autodiff();
        let expected = trained_by_a_loop(&device, &FINITE, &clipper(clip));
        assert!(expected.iter().all(|x| x.is_finite() && *x != 0.0), "{expected:?}");
        for clip in [clip, Clip::by_norm(1.0)] {
            let expected = trained_by_a_loop(&device, &FINITE, &clipper(clip));
            let clipper = clipper(clip.non_finite(NonFinite::Skip));
            assert_eq!(trained_by_a_loop(&device, &STEPS, &clipper), expected, "a loop on {device:?}");

            let mut optimizer = ClippedOptimizer::new(adam(), clipper);
            let mut skipped = Vec::new();
            let found = trained(&device, &STEPS, |model, gradients| {
                let model = optimizer.step(0.1, model, gradients).unwrap();
                skipped.push(optimizer.last().unwrap().skipped());
                model
            });
            assert_eq!(found, expected, "ClippedOptimizer on {device:?}");
            assert_eq!(skipped, STEPS.map(|step| step.iter().any(|x| !x.is_finite())));
        }
    }
}

#[test]
fn after_an_error_no_step_is_made_and_the_model_is_returned() {
    let clip = Clip::by_global_norm(1.0);
    for device in devices() {
        let device = device.autodiff();
        let expected = trained_by_a_loop(&device, &FINITE, &clipper(clip));
        let clipper = clipper(clip.non_finite(NonFinite::Error));
        let mut optimizer = ClippedOptimizer::new(adam(), clipper.clone());
        let mut culprits = Vec::new();
        let found = trained(&device, &STEPS, |model, gradients| {
            optimizer.step(0.1, model, gradients).unwrap_or_else(|StepError { module, error }| {
                let Error::NonFinite { parameter } = error else { panic!("{error}") };
                culprits.extend(parameter);
                module
            })
        });
        assert_eq!(found, expected, "on {device:?}");
        assert_eq!(culprits, ["biases.0", "biases.0", "biases.1"]);

        // A loop gets the error before its step, and the gradients are unchanged.
        let model = Model::new(&[], &[2, 1], &device);
        let mut grads = gradients(&model, [1.0, 2.0, f32::INFINITY], &device);
        let error = clipper.clip(&mut grads, &model).unwrap_err();
        assert!(
            matches!(&error, Error::NonFinite { parameter: Some(path) } if path == "biases.1"),
            "{error}"
        );
        assert_eq!(model.biases_of(&grads), [vec![1.0, 2.0], vec![f32::INFINITY]]);
    }
}

/// The factor of a skipped step is 1, so an optimizer that multiplies by it would still use the gradients.
#[test]
fn a_skipped_step_removes_the_gradients_of_the_module_and_no_others() {
    for device in devices() {
        let device = device.autodiff();
        let [model, other] = [0; 2].map(|_| Model::new(&[], &[2, 1], &device));
        let clip = |limit| Clip::by_global_norm(limit).non_finite(NonFinite::Skip);
        let groups = clipper(clip(1.0)).group(clip(0.1), |path| path == "biases.1").unwrap();
        for clipper in [groups, clipper(clip(1.0).coefficient_only())] {
            let mut grads = gradients(&model, [1.0, 2.0, f32::NAN], &device);
            grads.register(other.biases[1].id, vector(&[9.0], &device));
            let clipped = clipper.clip(&mut grads, &model).unwrap();
            assert!(clipped.skipped());
            assert!(clipped.records().unwrap().iter().any(gradclip::ClipRecord::skip));
            assert_eq!(grads.len(), 1);
            assert_eq!(values(grads.get::<1>(other.biases[1].id).unwrap()), [9.0]);
        }
    }
}

#[test]
fn a_step_with_gradients_of_several_devices_is_skipped() {
    for device in devices() {
        let device = device.autodiff();
        let mut several = MultiGradientsParams::default();
        let model = Model::new(&[], &[2, 1], &device);
        for step in [STEPS[0], STEPS[1]] {
            several.grads.push((gradients(&model, step, &device), device.clone()));
        }
        let clipper = clipper(Clip::by_global_norm(1.0).non_finite(NonFinite::Skip));
        assert!(clipper.clip_multi(&mut several, &model).unwrap().skipped());
        let mut optimizer = adam();
        let model = optimizer.step_multi(0.1, model, several);
        assert_eq!(parameters(&model), [0.0; 3]);
    }
}
