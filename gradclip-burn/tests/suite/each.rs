//! Clips of each gradient by itself: by its norm, or by its root mean square.

use gradclip_burn::{Clip, Epsilon, NonFinite, NormType};

use crate::{Model, assert_clipped, clipper, devices, noise, norm_of, values, vector};

fn gradients() -> Vec<Vec<f32>> {
    let small = |seed| noise(50, seed).iter().map(|x| x * 1e-3).collect();
    vec![noise(5000, 1), small(2), Vec::new(), noise(9, 3), noise(70_001, 4), vec![0.0; 8]]
}

#[test]
fn each_gradient_has_a_norm_and_a_factor_of_its_own() {
    for device in devices() {
        let before = gradients();
        let (model, mut grads) = Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        let clipped = clipper(Clip::by_norm(1.0)).clip(&mut grads, &model).unwrap();
        let after = model.biases_of(&grads);
        let records = clipped.records().unwrap();
        assert_eq!((records.len(), values(clipped.factor()).len()), (before.len(), before.len()));
        for index in 0..before.len() {
            let norm = clipped.norm().narrow(0, index, 1);
            assert_clipped(&before[index..=index], &after[index..=index], norm, 1.0);
            assert_eq!(records[index].clipped(), norm_of(&before[index..=index]) > 1.0);
        }
    }
}

#[test]
fn groups_of_gradients_that_are_clipped_one_by_one_have_limits_of_their_own() {
    for device in devices() {
        let before = gradients();
        let (model, mut grads) = Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        let clipper =
            clipper(Clip::by_norm(1.0)).group(Clip::by_norm(0.25), |path| path == "biases.3").unwrap();
        let clipped = clipper.clip(&mut grads, &model).unwrap();
        let after = model.biases_of(&grads);
        for index in 0..before.len() {
            let norm = clipped.norm().narrow(0, index, 1);
            let limit = if index == 3 { 0.25 } else { 1.0 };
            assert_clipped(&before[index..=index], &after[index..=index], norm, limit);
        }
    }
}

/// The limit grows with the root of the number of elements.
#[test]
fn by_root_mean_square() {
    for device in devices() {
        let before = gradients();
        let (model, mut grads) = Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        let clipped = clipper(Clip::by_rms(0.1)).clip(&mut grads, &model).unwrap();
        let after = model.biases_of(&grads);
        let norms = values(clipped.norm());
        for (index, (before, after)) in before.iter().zip(&after).enumerate() {
            let norm = norm_of(std::slice::from_ref(before));
            assert!((f64::from(norms[index]) - norm).abs() <= 1e-5 * norm);
            let rms = if before.is_empty() { 0.0 } else { norm / (before.len() as f64).sqrt() };
            let coef = if rms > 0.1 { 0.1 / rms } else { 1.0 };
            for (before, after) in before.iter().zip(after) {
                let expected = f64::from(*before) * coef;
                assert!((f64::from(*after) - expected).abs() <= 1e-5 * expected.abs(), "gradient {index}");
            }
        }
    }
}

/// A gradient that is not finite is its own affair.
#[test]
fn each_is_finite_or_not_by_itself() {
    for device in devices() {
        let (model, mut grads) = Model::with_gradients(vec![
            vector(&[3.0, 4.0], &device),
            vector(&[f32::NAN, 1.0], &device),
            vector(&[0.5], &device),
        ]);
        let clip = Clip::by_norm(1.0).epsilon(Epsilon::None).non_finite(NonFinite::Zero);
        let clipped = clipper(clip).clip(&mut grads, &model).unwrap();
        let after = model.biases_of(&grads);
        assert!((after[0][0] - 0.6).abs() < 1e-6 && (after[0][1] - 0.8).abs() < 1e-6);
        assert_eq!(after[1..], [vec![0.0, 0.0], vec![0.5]]);
        let records = clipped.records().unwrap();
        assert_eq!(records[1].first_non_finite(), Some(1));
        assert!(!records[0].non_finite() && !records[2].non_finite());
    }
}

/// Parts without an element are no part of a joint norm of a negative p.
#[test]
fn records_of_gradients_join_to_the_norm_of_all() {
    for device in devices() {
        let before = gradients();
        for norm_type in [NormType::L1, NormType::L2, NormType::Inf, NormType::P(3.0)] {
            let (model, mut grads) =
                Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
            let clip = Clip::by_norm(1.0).norm_type(norm_type).coefficient_only();
            let clipped = clipper(clip).clip(&mut grads, &model).unwrap();
            let joined = f64::from(gradclip::distributed::join_norms(
                &clipped.records().unwrap(),
                clipped.norm_type(),
            ));
            let slices: Vec<&[f32]> = before.iter().map(Vec::as_slice).collect();
            let expected = gradclip::reference::norm(&slices, norm_type);
            assert!((joined / expected - 1.0).abs() < 2e-5, "{norm_type:?}: {joined}, not {expected}");
        }
        let tensors = vec![vector(&[], &device), vector(&[4.0, 4.0], &device)];
        let (model, mut grads) = Model::with_gradients(tensors);
        let clipped =
            clipper(Clip::by_norm(1.0).norm_type(NormType::P(-1.0))).clip(&mut grads, &model).unwrap();
        assert_eq!(gradclip::distributed::join_norms(&clipped.records().unwrap(), clipped.norm_type()), 2.0);
    }
}
