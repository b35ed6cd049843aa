//! Modules: tied parameters, parameters without a gradient, and other modules in the same container.

use burn::Tensor;
use burn::module::Param;
use burn::optim::GradientsParams;
use gradclip_burn::Clip;

use crate::{Model, assert_clipped, clipper, devices, noise, values, vector};

#[test]
fn tied_parameters_count_once() {
    for device in devices() {
        let p = Param::from_tensor(vector(&noise(100, 1), &device.autodiff()));
        let model = Model { weights: Vec::new(), biases: vec![p.clone(), p.clone()] };
        let loss = || (p.val() * 50.0).square().sum();
        let before = values(GradientsParams::from_grads(loss().backward(), &model).get::<1>(p.id).unwrap());
        let mut grads = GradientsParams::from_grads(loss().backward(), &model);
        let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
        let after = values(grads.get::<1>(p.id).unwrap());
        assert_clipped(&[before], &[after], clipped.norm(), 1.0);
        assert_eq!(clipped.parameters(), ["biases.0"]);
    }
}

#[test]
fn parameters_without_a_gradient_and_empty_gradients() {
    for device in devices() {
        let before = vec![noise(10, 1), Vec::new(), noise(20, 2)];
        let (mut model, mut grads) =
            Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        model.biases.insert(1, Param::from_tensor(Tensor::zeros([4], &device)));
        let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
        assert_eq!(clipped.parameters(), ["biases.0", "biases.2", "biases.3"]);
        assert_eq!(grads.len(), 3);
        model.biases.remove(1);
        assert_clipped(&before, &model.biases_of(&grads), clipped.norm(), 1.0);
    }
}

#[test]
fn gradients_of_other_modules_stay_unchanged() {
    for device in devices() {
        let (model, mut grads) = Model::with_gradients(vec![vector(&[3.0, 4.0], &device)]);
        let other = Model::new(&[], &[2], &device);
        grads.register(other.biases[0].id, vector(&[30.0, 40.0], &device));
        let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
        assert_eq!(values(clipped.norm()), [5.0]);
        assert_eq!(other.biases_of(&grads).concat(), [30.0, 40.0]);
    }
}
