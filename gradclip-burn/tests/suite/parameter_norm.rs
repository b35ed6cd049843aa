//! Adaptive gradient clipping by parameter norms, and clips of rows, compared with gradclip's CPU path.

use burn::Tensor;
use burn::module::Param;
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::{DType, Device, TensorData};
use gradclip::cpu;
use gradclip_burn::{Clip, ClipRecord, Epsilon, Error, GradClipper, NonFinite, NormType};
use half::f16;

use crate::{Model, clipper, devices, noise, values, vector};

/// A parameter and its gradient.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) shape: Vec<usize>,
    pub(crate) parameter: Vec<f32>,
    pub(crate) gradient: Vec<f32>,
}

pub(crate) fn pair(shape: &[usize], parameter: Vec<f32>, gradient: Vec<f32>) -> Pair {
    Pair { shape: shape.to_vec(), parameter, gradient }
}

pub(crate) fn noisy(shape: &[usize], seed: u32) -> Pair {
    let count = shape.iter().product();
    pair(shape, noise(count, seed), noise(count, seed + 50))
}

/// Matrices, followed by vectors: the order of the parameters in the model.
fn pairs() -> Vec<Pair> {
    let small = noise(6 * 8, 3).iter().map(|x| x * 1e-3).collect();
    let mut mixed = noisy(&[4, 5], 5);
    // Rows of zeros in the parameter, in the gradient and in both.
    mixed.parameter[..5].fill(0.0);
    mixed.gradient[5..10].fill(0.0);
    mixed.parameter[10..15].fill(0.0);
    mixed.gradient[10..15].fill(0.0);
    vec![
        noisy(&[3, 4100], 1),
        pair(&[6, 8], small, noise(48, 2)),
        mixed,
        noisy(&[300, 3], 4),
        pair(&[0, 4], Vec::new(), Vec::new()),
        noisy(&[1, 9], 6),
        noisy(&[70_001], 7),
        noisy(&[9], 8),
        pair(&[2], vec![0.0; 2], vec![0.5, 0.5]),
        pair(&[0], Vec::new(), Vec::new()),
    ]
}

/// Parameters and gradients that are not finite or leave the range of f32, each in a row of its own.
fn extremes() -> Vec<Pair> {
    let numbers = [0.0, 1.0, 3e38, 1e-38, f32::INFINITY, f32::NAN];
    let of = |numbers: Vec<f32>| numbers.into_iter().flat_map(|x| [x, x, 0.0, x]).collect::<Vec<_>>();
    let all: Vec<_> = numbers.into_iter().flat_map(|a| numbers.map(|b| (a, b))).collect();
    vec![pair(
        &[36, 4],
        of(all.iter().map(|pair| pair.0).collect()),
        of(all.iter().map(|pair| pair.1).collect()),
    )]
}

pub(crate) fn matrix(values: &[f32], shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Creates a model, and a container with its gradients.
pub(crate) fn model(pairs: &[Pair], device: &Device) -> (Model, GradientsParams) {
    let mut grads = GradientsParams::new();
    let mut model = Model { weights: Vec::new(), biases: Vec::new() };
    for Pair { shape, parameter, gradient } in pairs {
        if let [rows, columns] = shape[..] {
            let parameter = Param::from_tensor(matrix(parameter, [rows, columns], device));
            grads.register(parameter.id, matrix(gradient, [rows, columns], &device.clone().inner()));
            model.weights.push(parameter);
        } else {
            let parameter = Param::from_tensor(vector(parameter, device));
            grads.register(parameter.id, vector(gradient, &device.clone().inner()));
            model.biases.push(parameter);
        }
    }
    (model, grads)
}

pub(crate) fn parameters(model: &Model) -> Vec<Vec<f32>> {
    let weights = model.weights.iter().map(|weight| values(weight.val().inner()));
    weights.chain(model.biases.iter().map(|bias| values(bias.val().inner()))).collect()
}

/// Clips on gradclip's CPU path. `limit_2` selects the parameters of the second group.
fn clip_on_the_cpu(
    plan: &mut cpu::ClipPlan,
    pairs: &[Pair],
    with_rows: bool,
    limit_2: impl Fn(usize) -> bool,
) -> (Vec<ClipRecord>, Vec<Vec<f32>>) {
    let mut gradients: Vec<_> = pairs.iter().map(|pair| pair.gradient.clone()).collect();
    let list = gradients.iter_mut().zip(pairs).enumerate().map(|(index, (gradient, pair))| {
        let is_split = with_rows && pair.shape.len() == 2 && !pair.gradient.is_empty();
        cpu::Gradient::f32(gradient)
            .parameter(cpu::Parameter::f32(&pair.parameter))
            .rows(if is_split { pair.shape[0] } else { 1 })
            .group(usize::from(limit_2(index)))
    });
    let records = plan.clip(&mut list.collect::<Vec<_>>()).expect("a valid clip");
    (records, gradients)
}

pub(crate) fn close(found: f32, expected: f32) -> bool {
    let tolerance = 2e-5 * expected.abs() + f32::MIN_POSITIVE;
    found == expected || found.is_nan() && expected.is_nan() || (found - expected).abs() <= tolerance
}

pub(crate) fn assert_same(
    (records, elements): (&[ClipRecord], &[Vec<f32>]),
    (expected_records, expected): (&[ClipRecord], &[Vec<f32>]),
    what: &str,
) {
    assert_eq!(records.len(), expected_records.len(), "{what}");
    for (index, (found, expected)) in records.iter().zip(expected_records).enumerate() {
        let flags = |r: &ClipRecord| (r.clipped(), r.non_finite(), r.zeroed(), r.first_non_finite());
        assert_eq!(flags(found), flags(expected), "{what}, record {index}: {found:?}, not {expected:?}");
        let numbers = |r: &ClipRecord| [r.total_norm, r.clip_coef, r.factor, r.max_magnitude];
        for (one, other) in numbers(found).into_iter().zip(numbers(expected)) {
            assert!(close(one, other), "{what}, record {index}: {found:?}, not {expected:?}");
        }
        assert_eq!(found.norm_exponent, expected.norm_exponent, "{what}, record {index}");
    }
    for (index, (found, expected)) in elements.concat().into_iter().zip(expected.concat()).enumerate() {
        assert!(close(found, expected), "{what}, element {index}: {found}, not {expected}");
    }
}

fn is_matrix(_: &str, shape: &[usize]) -> bool {
    shape.len() == 2
}

#[test]
fn limits_follow_the_norms_of_the_parameters() {
    let agc = |clipping| Clip::by_parameter_norm(clipping, 1e-3);
    let clips = [
        (agc(0.01), agc(0.5)),
        (agc(0.02).count_steps().tensor_stats(), agc(f32::INFINITY).count_steps().tensor_stats()),
        (
            agc(0.1).norm_type(NormType::L1).loss_scale(16.0),
            agc(0.0).norm_type(NormType::L1).loss_scale(16.0),
        ),
        (agc(0.3).norm_type(NormType::P(3.0)), agc(0.3).norm_type(NormType::P(3.0))),
        (
            Clip::by_parameter_norm(0.1, 0.0).norm_type(NormType::Inf),
            Clip::by_parameter_norm(1.0, 0.0).norm_type(NormType::Inf),
        ),
    ];
    for device in devices() {
        for (clip, clip_2) in clips {
            for with_rows in [false, true] {
                let what = format!("{clip:?}, rows: {with_rows}, on {device:?}");
                let pairs = pairs();
                let mut plan = cpu::ClipPlan::new(&[clip, clip_2]).unwrap();
                let clipper = clipper(clip)
                    .group(clip_2, |path| path == "weights.1" || path == "biases.1")
                    .unwrap()
                    .rows(move |path, shape| with_rows && is_matrix(path, shape));
                for _ in 0..2 {
                    let (expected, expected_after) =
                        clip_on_the_cpu(&mut plan, &pairs, with_rows, |index| index == 1 || index == 7);
                    let (model, mut grads) = model(&pairs, &device.clone().autodiff());
                    let clipped = clipper.clip(&mut grads, &model).unwrap();
                    assert_eq!(clipped.used_kernels(), device == Device::default(), "{what}");
                    let records = clipped.records().unwrap();
                    let after = model.gradients(&grads);
                    assert_same((&records, &after), (&expected, &expected_after), &what);
                    let before: Vec<_> = pairs.iter().map(|pair| pair.parameter.clone()).collect();
                    assert_eq!(parameters(&model), before, "the parameters are only read");
                    let factors = values(clipped.factor());
                    assert!(
                        factors.iter().zip(&expected).all(|(&f, record)| close(f, record.factor)),
                        "{what}"
                    );
                    let rows: Vec<_> = pairs
                        .iter()
                        .map(|pair| if with_rows && pair.shape.len() == 2 { pair.shape[0].max(1) } else { 1 })
                        .collect();
                    assert_eq!(clipped.units(), rows, "{what}");
                    let stats = clipped.tensor_stats().unwrap();
                    assert_eq!(stats.len(), plan.tensor_stats().len(), "{what}");
                    for ((_, found), expected) in stats.iter().zip(plan.tensor_stats()) {
                        assert!(close(found.norm, expected.norm), "{what}: {found:?}, not {expected:?}");
                        assert_eq!(found.max_magnitude, expected.max_magnitude, "{what}");
                        assert_eq!((found.zeros, found.non_finite), (expected.zeros, expected.non_finite));
                    }
                }
                let counts = clipper.step_counts().unwrap();
                if !counts.is_empty() {
                    assert_eq!(counts.len(), plan.step_counts().len(), "{what}");
                    for (found, expected) in counts.iter().zip(plan.step_counts()) {
                        assert_eq!(
                            (found.steps, found.clipped),
                            (expected.steps, expected.clipped),
                            "{what}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn extreme_parameters_and_gradients_agree_with_the_cpu_path() {
    for device in devices() {
        for policy in [NonFinite::Propagate, NonFinite::Zero, NonFinite::Poison] {
            for clipping in [0.01, 0.75, 0.0, f32::INFINITY, 1e30] {
                for floor in [1e-3, 0.0] {
                    let clip = Clip::by_parameter_norm(clipping, floor).non_finite(policy);
                    let what = format!("{clip:?} on {device:?}");
                    let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
                    let (expected, expected_after) = clip_on_the_cpu(&mut plan, &extremes(), true, |_| false);
                    let (model, mut grads) = model(&extremes(), &device);
                    let clipped = clipper(clip).rows(is_matrix).clip(&mut grads, &model).unwrap();
                    let records = clipped.records().unwrap();
                    let after = model.gradients(&grads);
                    assert_same((&records, &after), (&expected, &expected_after), &what);
                }
            }
        }
    }
}

#[test]
fn rows_have_their_own_norm_in_other_clips() {
    for device in devices() {
        for clip in [Clip::by_norm(0.5), Clip::by_rms(0.1), Clip::by_norm(0.5).norm_type(NormType::P(0.0))] {
            let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
            let (expected, expected_after) = clip_on_the_cpu(&mut plan, &pairs(), true, |_| false);
            let (model, mut grads) = model(&pairs(), &device);
            let clipped = clipper(clip).rows(is_matrix).clip(&mut grads, &model).unwrap();
            assert_same(
                (&clipped.records().unwrap(), &model.gradients(&grads)),
                (&expected, &expected_after),
                &format!("{clip:?} on {device:?}"),
            );
        }
        // Groups that share a norm have no rows.
        let (model, mut grads) = model(&pairs(), &device);
        let clipped = clipper(Clip::by_global_norm(1.0)).rows(|_, _| true).clip(&mut grads, &model).unwrap();
        assert_eq!((clipped.records().unwrap().len(), clipped.units().len()), (1, 0));
    }
}

/// Rows of odd lengths, whose halves share words; the parameters are f32.
#[test]
fn rows_in_half_precision() {
    for device in devices() {
        let shape = [5, 7];
        let halves: Vec<_> = noise(35, 7).iter().map(|&x| f16::from_f32(x)).collect();
        let weight = Param::from_tensor(matrix(&noise(35, 1), shape, &device));
        let model = Model { weights: vec![weight.clone()], biases: Vec::new() };
        let mut grads = GradientsParams::new();
        let gradient = Tensor::<2>::from_data(TensorData::new(halves.clone(), shape), (&device, DType::F16));
        grads.register(weight.id, gradient);
        let clip = Clip::by_parameter_norm(0.05, 1e-3);
        let clipped = clipper(clip).rows(is_matrix).clip(&mut grads, &model).unwrap();
        assert_eq!(clipped.used_kernels(), device == Device::default());
        let wide = halves.iter().map(|x| x.to_f32()).collect();
        let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
        let pairs = [pair(&shape, noise(35, 1), wide)];
        let (expected, expected_after) = clip_on_the_cpu(&mut plan, &pairs, true, |_| false);
        let after = model.gradients(&grads).concat();
        assert!(
            clipped.records().unwrap().iter().zip(&expected).all(|(a, b)| close(a.clip_coef, b.clip_coef))
        );
        for (found, expected) in after.iter().zip(expected_after.concat()) {
            assert!((found - expected).abs() <= 1e-3 * expected.abs(), "{found}, not {expected}");
        }
    }
}

/// The rows of transposed and of shared tensors. A whole tensor may have its elements in any order.
#[test]
fn transposed_gradients_and_parameters_have_the_right_rows() {
    for device in devices() {
        let (gradient, parameter) = (noise(6 * 40, 1), noise(6 * 40, 2));
        let transposed = |values: &[f32]| matrix(values, [40, 6], &device).transpose();
        let logical = |values: &[f32]| -> Vec<f32> {
            (0..6).flat_map(|row| (0..40).map(move |column| column * 6 + row)).map(|at| values[at]).collect()
        };
        let pairs = [pair(&[6, 40], logical(&parameter), logical(&gradient))];
        for with_rows in [true, false] {
            let weight = Param::from_tensor(transposed(&parameter));
            let model = Model { weights: vec![weight.clone()], biases: Vec::new() };
            let mut grads = GradientsParams::new();
            let shared = transposed(&gradient);
            grads.register(weight.id, shared.clone());
            let clip = Clip::by_parameter_norm(0.05, 1e-3);
            let clipper = clipper(clip).rows(move |_, _| with_rows);
            let clipped = clipper.clip(&mut grads, &model).unwrap();
            let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
            let (expected, expected_after) = clip_on_the_cpu(&mut plan, &pairs, with_rows, |_| false);
            assert_same(
                (&clipped.records().unwrap(), &model.gradients(&grads)),
                (&expected, &expected_after),
                &format!("rows: {with_rows} on {device:?}"),
            );
            assert_eq!(values(shared), logical(&gradient), "another tensor shares the memory");
        }
    }
}

/// A real backward pass, with tied parameters.
#[test]
fn tied_parameters_are_clipped_once() {
    for device in devices() {
        let autodiff = device.clone().autodiff();
        let p = Param::from_tensor(vector(&[3.0, 4.0], &autodiff));
        let model = Model { weights: Vec::new(), biases: vec![p.clone(), p.clone()] };
        let loss = (p.val() * vector(&[6.0, 8.0], &autodiff)).sum();
        let mut grads = GradientsParams::from_grads(loss.backward(), &model);
        let clip = Clip::by_parameter_norm(0.1, 1e-3).epsilon(Epsilon::None);
        let clipped = clipper(clip).clip(&mut grads, &model).unwrap();
        assert_eq!(clipped.parameters(), ["biases.0"]);
        assert_eq!(values(clipped.norm()), [10.0]);
        let after = values(grads.get::<1>(p.id).unwrap());
        assert!(close(after[0], 0.3) && close(after[1], 0.4), "{after:?}");
    }
}

#[test]
fn a_parameter_of_another_shape_is_named_and_all_gradients_stay_unchanged() {
    for device in devices() {
        let model = Model::new(&[[2, 6]], &[2], &device);
        let mut grads = GradientsParams::new();
        grads.register(model.biases[0].id, vector(&[30.0, 40.0], &device));
        grads.register(model.weights[0].id, matrix(&noise(12, 1), [3, 4], &device));
        let is_named = |error: &Error| {
            let shapes =
                "the gradient of weights.0 has the shape [3, 4], but the parameter has the shape [2, 6]";
            assert!(matches!(error, Error::Shape { .. }) && error.to_string() == shapes, "{error}");
        };
        let agc = clipper(Clip::by_parameter_norm(0.1, 1e-3));
        is_named(&agc.clip(&mut grads, &model).unwrap_err());
        assert_eq!(model.gradients(&grads), [noise(12, 1), vec![30.0, 40.0]]);
        let mut several = MultiGradientsParams::default();
        several.grads.push((grads, device.clone()));
        is_named(&agc.clip_multi(&mut several, &model).unwrap_err());
        let mut grads = several.grads.remove(0).0;
        assert_eq!(model.gradients(&grads), [noise(12, 1), vec![30.0, 40.0]]);
        // Other clips do not read the parameters.
        GradClipper::by_global_norm(1.0).unwrap().clip(&mut grads, &model).unwrap();
    }
}

#[test]
fn a_parameter_may_be_on_another_device_than_its_gradient() {
    let [gpu, cpu] = devices();
    for (here, there) in [(&gpu, &cpu), (&cpu, &gpu)] {
        let pairs = [noisy(&[4, 5], 1), noisy(&[9], 2)];
        let (mut model, mut grads) = model(&pairs, here);
        let weight = &model.weights[0];
        model.weights[0] = Param::initialized(weight.id, weight.val().to_device(there));
        let clip = Clip::by_parameter_norm(0.05, 1e-3);
        let clipped = clipper(clip).rows(is_matrix).clip(&mut grads, &model).unwrap();
        let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
        let (expected, expected_after) = clip_on_the_cpu(&mut plan, &pairs, true, |_| false);
        let found = (clipped.records().unwrap(), model.gradients(&grads));
        assert_same((&found.0, &found.1), (&expected, &expected_after), "two devices");
    }
}
