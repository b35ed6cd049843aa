//! The optimizer that clips first.

use burn::optim::{GradientsParams, SgdConfig};
use gradclip_burn::{Clip, ClippedOptimizer};

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
            // Unclipped it would be -1.5 and -2 a step.
            let [a, b] = [&model.biases[0], &model.biases[1]].map(|bias| values(bias.val().inner())[0]);
            assert!((a + 0.3 * f32::from(step)).abs() < 1e-6, "{a}");
            assert!((b + 0.4 * f32::from(step)).abs() < 1e-6, "{b}");
        }
    }
}
