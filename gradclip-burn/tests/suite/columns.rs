//! Clips of columns, compared with gradclip's CPU path and with rows of the transpose.

use burn::Tensor;
use burn::module::{Module, Param};
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::{DType, TensorData};
use gradclip::cpu;
use gradclip_burn::{AutoClip, Clip, ClipRecord, Error, NonFinite, NormType};
use half::{bf16, f16};

use crate::parameter_norm::{Pair, assert_same, close, matrix, model, noisy, pair, parameters};
use crate::{Model, clipper, devices, noise, values, vector};

/// Matrices, followed by vectors: the order of the parameters in the model. Matrix 4 is split into rows, and the others
/// into columns.
fn pairs() -> Vec<Pair> {
    let mut mixed = noisy(&[5, 4], 5);
    // Columns of zeros in the parameter, in the gradient and in both.
    for row in 0..5 {
        mixed.parameter[4 * row] = 0.0;
        mixed.gradient[4 * row + 1] = 0.0;
        mixed.parameter[4 * row + 2] = 0.0;
        mixed.gradient[4 * row + 2] = 0.0;
    }
    vec![
        // Several blocks of rows, and more columns than a workgroup has invocations.
        noisy(&[700, 3], 1),
        noisy(&[300, 257], 2),
        noisy(&[2, 600], 3),
        mixed,
        noisy(&[5, 7], 4),
        noisy(&[8, 6], 6),
        noisy(&[1, 9], 7),
        noisy(&[9, 1], 8),
        pair(&[4, 0], Vec::new(), Vec::new()),
        noisy(&[70_001], 9),
        noisy(&[9], 10),
        pair(&[0], Vec::new(), Vec::new()),
    ]
}

const SPLIT_INTO_ROWS: usize = 4;

/// Returns the number of rows and the number of columns of a gradient that are clipped on their own.
fn split(index: usize, pair: &Pair) -> [usize; 2] {
    match pair.shape[..] {
        [rows, _] if index == SPLIT_INTO_ROWS => [rows, 1],
        [_, columns] if !pair.gradient.is_empty() => [1, columns],
        _ => [1, 1],
    }
}

fn clip_on_the_cpu(
    plan: &mut cpu::ClipPlan,
    pairs: &[Pair],
    split: impl Fn(usize, &Pair) -> [usize; 2],
    group: impl Fn(usize) -> usize,
) -> (Vec<ClipRecord>, Vec<Vec<f32>>) {
    let mut gradients: Vec<_> = pairs.iter().map(|pair| pair.gradient.clone()).collect();
    let list = gradients.iter_mut().zip(pairs).enumerate().map(|(index, (gradient, pair))| {
        let [rows, columns] = split(index, pair);
        cpu::Gradient::f32(gradient)
            .parameter(cpu::Parameter::f32(&pair.parameter))
            .rows(rows)
            .columns(columns)
            .group(group(index))
    });
    let records = plan.clip(&mut list.collect::<Vec<_>>()).expect("a valid clip");
    (records, gradients)
}

fn is_matrix(_: &str, shape: &[usize]) -> bool {
    shape.len() == 2
}

#[test]
fn columns_agree_with_the_cpu_path() {
    let agc = |clipping| Clip::by_parameter_norm(clipping, 1e-3);
    let norm = Clip::by_norm;
    let clips = [
        (agc(0.01), agc(0.5)),
        (agc(0.02).count_steps().tensor_stats(), agc(f32::INFINITY).count_steps().tensor_stats()),
        (
            agc(0.1).norm_type(NormType::L1).loss_scale(16.0),
            agc(0.0).norm_type(NormType::L1).loss_scale(16.0),
        ),
        (agc(0.3).norm_type(NormType::P(3.0)), agc(0.3).norm_type(NormType::P(3.0))),
        (norm(0.5).tensor_stats(), norm(0.25).tensor_stats()),
        (norm(0.5).norm_type(NormType::Inf), norm(f32::INFINITY).norm_type(NormType::Inf)),
        (norm(0.5).norm_type(NormType::P(0.0)), norm(2.0).norm_type(NormType::P(0.0))),
        (norm(0.5).norm_type(NormType::P(-1.0)), norm(0.1).norm_type(NormType::P(-1.0))),
        (Clip::by_rms(0.1).coefficient_only(), Clip::by_rms(0.5).coefficient_only()),
        (Clip::by_rms(0.1).norm_type(NormType::L2), Clip::by_rms(0.5)),
    ];
    for device in devices() {
        for (clip, clip_2) in clips {
            let what = format!("{clip:?} on {device:?}");
            let pairs = pairs();
            let mut plan = cpu::ClipPlan::new(&[clip, clip_2]).unwrap();
            let rows = format!("weights.{SPLIT_INTO_ROWS}");
            let of_rows = rows.clone();
            let clipper = clipper(clip)
                .group(clip_2, |path| path == "weights.1" || path == "weights.3" || path == "biases.1")
                .unwrap()
                .rows(move |path, _| path == of_rows)
                .columns(move |path, shape| path != rows && is_matrix(path, shape));
            for _ in 0..2 {
                let group = |index| usize::from([1, 3, 10].contains(&index));
                let (expected, expected_after) = clip_on_the_cpu(&mut plan, &pairs, split, group);
                let (model, mut grads) = model(&pairs, &device.clone().autodiff());
                let clipped = clipper.clip(&mut grads, &model).unwrap();
                assert_eq!(clipped.used_kernels(), device == devices()[0], "{what}");
                let (records, after) = (clipped.records().unwrap(), model.gradients(&grads));
                assert_same((&records, &after), (&expected, &expected_after), &what);
                let before: Vec<_> = pairs.iter().map(|pair| pair.parameter.clone()).collect();
                assert_eq!(parameters(&model), before, "the parameters are only read");
                let factors = values(clipped.factor());
                assert!(factors.iter().zip(&expected).all(|(&f, record)| close(f, record.factor)), "{what}");
                let units = pairs.iter().enumerate().map(|(index, pair)| split(index, pair).iter().product());
                assert_eq!(clipped.units(), units.collect::<Vec<usize>>(), "{what}");
                let stats = clipped.tensor_stats().unwrap();
                assert_eq!(stats.len(), plan.tensor_stats().len(), "{what}");
                for ((path, found), expected) in stats.iter().zip(plan.tensor_stats()) {
                    assert!(close(found.norm, expected.norm), "{what}, {path}: {found:?}, not {expected:?}");
                    assert_eq!(found.max_magnitude, expected.max_magnitude, "{what}, {path}");
                    assert_eq!((found.zeros, found.non_finite), (expected.zeros, expected.non_finite));
                }
            }
            for (found, expected) in clipper.step_counts().unwrap().iter().zip(plan.step_counts()) {
                assert_eq!((found.steps, found.clipped), (expected.steps, expected.clipped), "{what}");
            }
        }
    }
}

/// Parameters and gradients that are not finite or leave the range of f32, each in a column of its own.
#[test]
fn extreme_columns_agree_with_the_cpu_path() {
    let numbers = [0.0, 1.0, 3e38, 1e-38, f32::INFINITY, f32::NAN];
    let all: Vec<_> = numbers.into_iter().flat_map(|a| numbers.map(|b| (a, b))).collect();
    let of = |number: fn(&(f32, f32)) -> f32| {
        let row = |factor: f32| all.iter().map(move |pair| number(pair) * factor);
        let zeros = all.iter().map(|_| 0.0);
        row(1.0).chain(row(1.0)).chain(zeros).chain(row(1.0)).collect::<Vec<_>>()
    };
    let pairs = [pair(&[4, 36], of(|pair| pair.0), of(|pair| pair.1))];
    for device in devices() {
        for policy in [NonFinite::Propagate, NonFinite::Zero, NonFinite::Poison] {
            for clip in [
                Clip::by_parameter_norm(0.75, 1e-3),
                Clip::by_parameter_norm(f32::INFINITY, 0.0),
                Clip::by_parameter_norm(1e30, 0.0),
                Clip::by_norm(1.0),
            ] {
                let clip = clip.non_finite(policy);
                let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
                let (expected, expected_after) = clip_on_the_cpu(&mut plan, &pairs, |_, _| [1, 36], |_| 0);
                let (model, mut grads) = model(&pairs, &device);
                let clipped = clipper(clip).columns(is_matrix).clip(&mut grads, &model).unwrap();
                let found = (clipped.records().unwrap(), model.gradients(&grads));
                let what = format!("{clip:?} on {device:?}");
                assert_same((&found.0, &found.1), (&expected, &expected_after), &what);
            }
        }
    }
}

/// Columns of odd numbers, whose halves share words with their neighbours; the parameters are f32.
#[test]
fn columns_in_half_precision() {
    for device in devices() {
        for shape in [[5, 7], [300, 3], [4, 8], [3, 300]] {
            let count = shape.iter().product();
            let numbers = noise(count, 7);
            let parameter = noise(count, 1);
            for dtype in [DType::F16, DType::BF16] {
                let mut halves: Vec<_> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
                let mut bfloats: Vec<_> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
                let is_f16 = dtype == DType::F16;
                let data = if is_f16 {
                    TensorData::new(halves.clone(), shape)
                } else {
                    TensorData::new(bfloats.clone(), shape)
                };
                let weight = Param::from_tensor(matrix(&parameter, shape, &device));
                let model = Model { weights: vec![weight.clone()], biases: Vec::new() };
                let mut grads = GradientsParams::new();
                grads.register(weight.id, Tensor::<2>::from_data(data, (&device, dtype)));
                let clip = Clip::by_parameter_norm(0.05, 1e-3);
                let clipped = clipper(clip).columns(is_matrix).clip(&mut grads, &model).unwrap();
                assert_eq!(clipped.used_kernels(), device == devices()[0]);

                let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
                let gradient =
                    if is_f16 { cpu::Gradient::f16(&mut halves) } else { cpu::Gradient::bf16(&mut bfloats) };
                let gradient = gradient.parameter(cpu::Parameter::f32(&parameter)).columns(shape[1]);
                let expected = plan.clip(&mut [gradient]).unwrap();
                let records = clipped.records().unwrap();
                assert!(records.iter().zip(&expected).all(|(a, b)| close(a.clip_coef, b.clip_coef)));
                let expected: Vec<_> = if is_f16 {
                    halves.iter().map(|x| x.to_f32()).collect()
                } else {
                    bfloats.iter().map(|x| x.to_f32()).collect()
                };
                // A product near the middle of two numbers may be rounded to either.
                let tolerance = if is_f16 { 1e-3 } else { 8e-3 };
                for (found, expected) in model.gradients(&grads).concat().iter().zip(expected) {
                    assert!(
                        (found - expected).abs() <= tolerance * expected.abs(),
                        "{found}, not {expected}"
                    );
                }
            }
        }
    }
}

/// The columns of a weight `[in, out]` are the rows of its transpose.
#[test]
fn columns_are_the_rows_of_the_transpose() {
    for device in devices() {
        let (gradient, parameter) = (noise(40 * 6, 1), noise(40 * 6, 2));
        let clip = Clip::by_parameter_norm(0.05, 1e-3);
        let run = |is_transposed: bool| {
            let of = |numbers: &[f32]| {
                let weight = matrix(numbers, [40, 6], &device);
                if is_transposed { weight.transpose() } else { weight }
            };
            let weight = Param::from_tensor(of(&parameter));
            let model = Model { weights: vec![weight.clone()], biases: Vec::new() };
            let mut grads = GradientsParams::new();
            let shared = of(&gradient);
            grads.register(weight.id, shared.clone());
            let split = clipper(clip);
            let split = if is_transposed { split.rows(is_matrix) } else { split.columns(is_matrix) };
            let clipped = split.clip(&mut grads, &model).unwrap();
            assert_eq!(values(shared), values(of(&gradient)), "another tensor shares the memory");
            let after = grads.get::<2>(weight.id).unwrap();
            let after = if is_transposed { after.transpose() } else { after };
            (clipped.records().unwrap(), vec![values(after)])
        };
        let (columns, rows) = (run(false), run(true));
        assert_same((&columns.0, &columns.1), (&rows.0, &rows.1), &format!("on {device:?}"));
        assert!(columns.0.iter().all(ClipRecord::clipped));

        // The columns of a transposed gradient are not in the order of the memory.
        let pairs = [pair(&[6, 40], transposed(&parameter), transposed(&gradient))];
        let weight = Param::from_tensor(matrix(&parameter, [40, 6], &device).transpose());
        let model = Model { weights: vec![weight.clone()], biases: Vec::new() };
        let mut grads = GradientsParams::new();
        grads.register(weight.id, matrix(&gradient, [40, 6], &device).transpose());
        let clipped = clipper(clip).columns(is_matrix).clip(&mut grads, &model).unwrap();
        let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
        let (expected, expected_after) = clip_on_the_cpu(&mut plan, &pairs, |_, _| [1, 40], |_| 0);
        let found = (clipped.records().unwrap(), model.gradients(&grads));
        assert_same((&found.0, &found.1), (&expected, &expected_after), "transposed");
    }
}

/// Returns the transpose of a matrix of 40 rows and 6 columns.
fn transposed(numbers: &[f32]) -> Vec<f32> {
    (0..6).flat_map(|column| (0..40).map(move |row| row * 6 + column)).map(|at| numbers[at]).collect()
}

/// A parameter of three dimensions.
#[derive(Module, Debug)]
struct Cube {
    cube: Param<Tensor<3>>,
}

#[test]
fn columns_run_along_the_last_dimension() {
    for device in devices() {
        let numbers = noise(4 * 5 * 6, 3);
        let gradient =
            Tensor::<3>::from_data(TensorData::new(numbers.clone(), [4, 5, 6]), &device.clone().inner());
        let model = Cube { cube: Param::from_tensor(Tensor::zeros([4, 5, 6], &device)) };
        let mut grads = GradientsParams::new();
        grads.register(model.cube.id, gradient);
        let clip = Clip::by_norm(0.5);
        let clipper = clipper(clip).columns(|path, shape| path == "cube" && *shape == [4, 5, 6]);
        let clipped = clipper.clip(&mut grads, &model).unwrap();
        let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
        let pairs = [pair(&[20, 6], vec![0.0; 120], numbers)];
        let (expected, expected_after) = clip_on_the_cpu(&mut plan, &pairs, |_, _| [1, 6], |_| 0);
        let after = values(grads.get::<3>(model.cube.id).unwrap());
        assert_same((&clipped.records().unwrap(), &[after]), (&expected, &expected_after), "a cube");
    }
}

/// Each column has its own state.
#[test]
fn columns_keep_state() {
    for device in devices() {
        let auto_clip = AutoClip { percentile: 50.0, window: 3 };
        let clip = Clip::by_norm(f32::INFINITY).auto_clip(auto_clip).count_steps();
        let (clipper, mut plan) = (clipper(clip).columns(is_matrix), cpu::ClipPlan::new(&[clip]).unwrap());
        for seed in 1..6 {
            let pairs = [noisy(&[30, 5], seed), noisy(&[7], seed + 9)];
            let split = |_: usize, pair: &Pair| [1, if pair.shape.len() == 2 { 5 } else { 1 }];
            let (expected, expected_after) = clip_on_the_cpu(&mut plan, &pairs, split, |_| 0);
            let (model, mut grads) = model(&pairs, &device);
            let clipped = clipper.clip(&mut grads, &model).unwrap();
            let found = (clipped.records().unwrap(), model.gradients(&grads));
            assert_same((&found.0, &found.1), (&expected, &expected_after), &format!("seed {seed}"));
        }
        let lengths: Vec<_> =
            clipper.norm_windows().unwrap().into_iter().map(|window| window.norms.len()).collect();
        assert_eq!((lengths, clipper.step_counts().unwrap()[4].steps), (vec![3; 6], 5));
    }
}

#[test]
fn a_gradient_with_rows_and_columns_is_named_and_all_gradients_stay_unchanged() {
    for device in devices() {
        let (model, mut grads) = model(&[noisy(&[2, 3], 1), noisy(&[3, 4], 2), noisy(&[5], 3)], &device);
        let before = model.gradients(&grads);
        let both = clipper(Clip::by_norm(0.1)).rows(|path, _| path == "weights.1").columns(is_matrix);
        let is_named = |error: &Error| {
            let text = "the gradient of weights.1, with the shape [3, 4], is selected by rows and by columns, \
                        but it can be split into only one of the two";
            assert!(matches!(error, Error::RowsAndColumns { .. }) && error.to_string() == text, "{error}");
        };
        is_named(&both.clip(&mut grads, &model).unwrap_err());
        assert_eq!(model.gradients(&grads), before);
        let mut several = MultiGradientsParams::default();
        several.grads.push((grads, device.clone()));
        is_named(&both.clip_multi(&mut several, &model).unwrap_err());
        let mut grads = several.grads.remove(0).0;
        assert_eq!(model.gradients(&grads), before);
        // Clips whose groups share a norm, and clips by value, have neither rows nor columns.
        for clip in [Clip::by_global_norm(1.0), Clip::by_value(0.5)] {
            let both = clipper(clip).rows(|_, _| true).columns(|_, _| true);
            assert_eq!(both.clip(&mut grads, &model).unwrap().units(), Vec::<usize>::new());
        }
    }
}

/// A vector has a column for each element.
#[test]
fn the_columns_of_a_vector_are_its_elements() {
    for device in devices() {
        let (model, mut grads) = Model::with_gradients(vec![vector(&[3.0, -0.5, 0.0, 8.0], &device)]);
        let clip = Clip::by_norm(1.0).epsilon(gradclip_burn::Epsilon::None);
        let clipped = clipper(clip).columns(|_, _| true).clip(&mut grads, &model).unwrap();
        assert_eq!(values(clipped.norm()), [3.0, 0.5, 0.0, 8.0]);
        let after = model.biases_of(&grads).remove(0);
        let expected = [1.0, -0.5, 0.0, 1.0];
        assert!(after.iter().zip(expected).all(|(&found, expected)| close(found, expected)), "{after:?}");
    }
}
