//! Norms, elements and policies, compared with f64 and with gradclip's CPU path.

use burn::module::Param;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor, TensorData};
use gradclip::cpu;
use gradclip_burn::{Clip, ClipRecord, Epsilon, Error, NonFinite, NormType};
use half::{bf16, f16};

use crate::{Model, assert_clipped, clipper, devices, noise, norm_of, values, vector};

#[test]
fn gradients_of_all_sizes_are_scaled_to_the_limit() {
    for device in devices() {
        let lengths = [1, 3, 4, 255, 4096, 4097, 70_001, 8, 100_000];
        let before: Vec<_> = lengths.iter().zip(1..).map(|(&length, seed)| noise(length, seed)).collect();
        let (model, mut grads) = Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
        assert_clipped(&before, &model.biases_of(&grads), clipped.norm(), 1.0);
        let record = clipped.records().unwrap()[0];
        assert!(record.clipped() && !record.non_finite());
        assert_eq!(clipped.used_kernels(), device == Device::default());
        assert_eq!(record.total_norm, values(clipped.norm())[0]);
    }
}

#[test]
fn gradients_within_the_limit_keep_every_bit() {
    for device in devices() {
        let before = vec![noise(1000, 1), vec![-0.0, f32::MIN_POSITIVE, 1e-3, 0.5]];
        let (model, mut grads) = Model::with_gradients(before.iter().map(|g| vector(g, &device)).collect());
        let clipped = clipper(Clip::by_global_norm(1e3)).clip(&mut grads, &model).unwrap();
        let bits =
            |gradients: &[Vec<f32>]| gradients.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&model.biases_of(&grads)), bits(&before));
        assert!(!clipped.records().unwrap()[0].clipped());
    }
}

#[test]
fn a_real_backward_pass() {
    use burn::nn::{Linear, LinearConfig};
    for device in devices() {
        let device = device.autodiff();
        let layer: Linear = LinearConfig::new(33, 17).init(&device);
        let input = Tensor::<2>::from_data(TensorData::new(noise(5 * 33, 3), [5, 33]), &device);
        let loss = || (layer.forward(input.clone()) * 3.0).square().sum();
        let before = |grads: &GradientsParams| {
            let bias = layer.bias.as_ref().unwrap();
            vec![values(grads.get::<2>(layer.weight.id).unwrap()), values(grads.get::<1>(bias.id).unwrap())]
        };
        let unclipped = before(&GradientsParams::from_grads(loss().backward(), &layer));
        let mut grads = GradientsParams::from_grads(loss().backward(), &layer);
        let clipped = clipper(Clip::by_global_norm(0.5)).clip(&mut grads, &layer).unwrap();
        assert_eq!(clipped.parameters(), ["weight", "bias"]);
        assert_clipped(&unclipped, &before(&grads), clipped.norm(), 0.5);
    }
}

#[test]
fn other_norms() {
    for device in devices() {
        for (norm_type, expected) in
            [(NormType::L1, 7.5), (NormType::Inf, 4.0), (NormType::P(2.0), 26.25_f32.sqrt())]
        {
            let (model, mut grads) = Model::with_gradients(vec![
                vector(&[3.0, -0.5], &device),
                vector(&[-4.0], &device),
                vector(&[1.0], &device),
            ]);
            let before = model.biases_of(&grads).concat();
            let clipper = clipper(Clip::by_global_norm(1.0).norm_type(norm_type).epsilon(Epsilon::None));
            let clipped = clipper.clip(&mut grads, &model).unwrap();
            let expected = if norm_type == NormType::L1 { expected + 1.0 } else { expected };
            assert_eq!(values(clipped.norm()), [expected], "{norm_type:?}");
            for (before, after) in before.iter().zip(model.biases_of(&grads).concat()) {
                assert!((after - before / expected).abs() < 1e-6, "{norm_type:?}");
            }
        }
    }
}

/// The norm, the record, the elements and the statistics for any p, over several gradients and tiles.
#[test]
fn norms_of_any_p() {
    let zeros = |index: usize, x: f32| if index.is_multiple_of(3) { 0.0 } else { x };
    let some: Vec<_> = noise(9001, 1).into_iter().enumerate().map(|(index, x)| zeros(index, x)).collect();
    let sets = [
        vec![noise(5, 2), noise(8192, 3), Vec::new(), vec![0.0; 3]],
        vec![noise(70_001, 4), noise(9, 5), Vec::new()],
        vec![some, vec![0.0; 16], noise(33, 6)],
        vec![vec![0.0; 5000]],
        vec![vec![1e30; 7], vec![1e-30, 2e30]],
    ];
    let powers = [3.0, 0.5, 2.5, 0.0, -1.0, -3.0, f32::NEG_INFINITY];
    for device in devices() {
        for before in &sets {
            for p in powers {
                let norm_type = NormType::P(p);
                let tensors = before.iter().map(|g| vector(g, &device)).collect();
                let (model, mut grads) = Model::with_gradients(tensors);
                let clip =
                    Clip::by_global_norm(0.5).norm_type(norm_type).epsilon(Epsilon::None).tensor_stats();
                let clipped = clipper(clip).clip(&mut grads, &model).unwrap();
                assert_eq!(clipped.used_kernels(), device == Device::default());
                let slices: Vec<&[f32]> = before.iter().map(Vec::as_slice).collect();
                let expected = gradclip::reference::norm(&slices, norm_type);
                let found = f64::from(values(clipped.norm())[0]);
                let what = format!("p = {p} of {} gradients on {device:?}", before.len());
                let close = |found: f64, expected: f64| (found - expected).abs() <= 2e-5 * expected;
                let beyond = expected > f64::from(f32::MAX);
                assert!(
                    close(found, expected) || beyond && found.is_infinite(),
                    "{what}: {found}, not {expected}"
                );
                let record = clipped.records().unwrap()[0];
                assert!(!record.non_finite(), "{what}");
                let unbounded = f64::from(record.norm_significand) * f64::from(record.norm_exponent).exp2();
                assert!(
                    close(unbounded, expected) || record.norm_exponent == ClipRecord::EMPTY_EXPONENT,
                    "{what}"
                );
                let coef = f64::from(record.factor_significand) * f64::from(record.factor_exponent).exp2();
                let after = model.biases_of(&grads);
                for (before, after) in before.iter().flatten().zip(after.iter().flatten()) {
                    // Subnormal numbers may be flushed.
                    let (after, expected) = (f64::from(*after), f64::from(*before) * coef);
                    let difference = (after - expected).abs() - f64::from(f32::MIN_POSITIVE);
                    assert!(difference <= 2e-7 * expected.abs(), "{what}: {after}, not {expected}");
                }
                let stats = clipped.tensor_stats().unwrap();
                for ((_, stats), gradient) in stats.iter().zip(&slices) {
                    let expected = gradclip::reference::norm(&[gradient], norm_type);
                    let found = f64::from(stats.norm);
                    assert!(
                        close(found, expected) || expected > f64::from(f32::MAX) && found.is_infinite(),
                        "{what}: {found}, not {expected}"
                    );
                    let zeros = gradient.iter().filter(|x| **x == 0.0).count();
                    assert_eq!(stats.zeros as usize, zeros, "{what}");
                }
            }
        }
    }
}

/// Norms of general p load half-precision gradients word by word, and are NaN if an element is NaN.
#[test]
fn norms_of_any_p_in_half_precision_and_of_nan() {
    for device in devices() {
        let halves: Vec<_> = noise(4099, 7).iter().map(|&x| f16::from_f32(x)).collect();
        let gradient = Tensor::from_data(TensorData::new(halves.clone(), [4099]), (&device, DType::F16));
        let (model, mut grads) = Model::with_gradients(vec![gradient]);
        let clip = |p| Clip::by_global_norm(1.0).norm_type(NormType::P(p)).coefficient_only();
        let clipped = clipper(clip(3.0)).clip(&mut grads, &model).unwrap();
        let wide: Vec<_> = halves.iter().map(|x| x.to_f32()).collect();
        let expected = gradclip::reference::norm(&[&wide], NormType::P(3.0));
        let found = f64::from(values(clipped.norm())[0]);
        assert!((found / expected - 1.0).abs() < 2e-5, "{found}, not {expected} on {device:?}");

        for p in [3.0, -1.0, f32::NEG_INFINITY] {
            let (model, mut grads) = Model::with_gradients(vec![vector(&[1.0, f32::NAN, 2.0], &device)]);
            let clipped = clipper(clip(p)).clip(&mut grads, &model).unwrap();
            assert!(values(clipped.norm())[0].is_nan(), "p = {p} on {device:?}");
        }
    }
}

#[test]
fn squares_beyond_the_range_of_f32() {
    for device in devices() {
        for (size, expected) in [(1e20, 5e20), (1e-30, 5e-30)] {
            let gradients = vec![vector(&[3.0 * size], &device), vector(&[4.0 * size, 0.0], &device)];
            let (model, mut grads) = Model::with_gradients(gradients);
            let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
            let norm = values(clipped.norm())[0];
            assert!((norm / expected - 1.0).abs() < 1e-6, "{norm}, not {expected}");
        }
    }
}

/// Clips on gradclip's CPU path.
fn clip_on_the_cpu(gradients: &[Vec<f32>], clip: Clip) -> (ClipRecord, Vec<Vec<f32>>) {
    let mut gradients = gradients.to_vec();
    let mut list: Vec<_> = gradients.iter_mut().map(|gradient| cpu::Gradient::f32(gradient)).collect();
    let records = cpu::clip(&mut list, clip).expect("a valid clip");
    (records[0], gradients)
}

/// The kernels and the tensor operations agree with the CPU path for every norm type and policy, for finite and
/// non-finite gradients, and for norms beyond f32.
#[test]
fn norms_and_policies_agree_with_the_cpu_path() {
    let norm_types = [
        NormType::L1,
        NormType::L2,
        NormType::Inf,
        NormType::P(3.0),
        NormType::P(0.0),
        NormType::P(-1.0),
        NormType::P(f32::NEG_INFINITY),
    ];
    let of = |bad: f32| vec![vec![3.0; 5], vec![1.0, bad, 2.0], vec![0.5]];
    let sets = [
        of(-4.0),
        of(0.0),
        of(f32::INFINITY),
        of(f32::NEG_INFINITY),
        of(f32::NAN),
        vec![vec![3e38; 4], vec![-3e38, 1.0]],
        vec![vec![1e-3, f32::INFINITY], vec![f32::NAN]],
    ];
    let same = |found: f32, expected: f32| {
        let tolerance = 2e-5 * expected.abs() + f32::MIN_POSITIVE;
        found == expected || found.is_nan() && expected.is_nan() || (found - expected).abs() <= tolerance
    };
    for device in devices() {
        for norm_type in norm_types {
            for set in &sets {
                for policy in [NonFinite::Propagate, NonFinite::Zero, NonFinite::Poison, NonFinite::Skip] {
                    let clip = Clip::by_global_norm(1.0).norm_type(norm_type).non_finite(policy);
                    let (expected, expected_after) = clip_on_the_cpu(set, clip);
                    let tensors = || set.iter().map(|g| vector(g, &device)).collect();
                    let (model, mut grads) = Model::with_gradients(tensors());
                    let clipped = clipper(clip).clip(&mut grads, &model).unwrap();
                    let record = clipped.records().unwrap()[0];
                    let what = format!("{norm_type:?}, {policy:?} of {set:?} on {device:?}");
                    let flags = |r: &ClipRecord| {
                        (r.clipped(), r.non_finite(), r.skip(), r.zeroed(), r.first_non_finite())
                    };
                    assert_eq!(flags(&record), flags(&expected), "{what}");
                    let numbers = |r: &ClipRecord| {
                        [r.total_norm, r.clip_coef, r.factor, r.max_magnitude, r.norm_significand]
                    };
                    for (found, expected) in numbers(&record).into_iter().zip(numbers(&expected)) {
                        assert!(same(found, expected), "{what}: {found}, not {expected}");
                    }
                    let exponents = |r: &ClipRecord| [r.norm_exponent, r.factor_exponent];
                    assert_eq!(exponents(&record), exponents(&expected), "{what}");
                    assert!(same(values(clipped.norm())[0], expected.total_norm), "{what}");
                    assert!(same(values(clipped.factor())[0], expected.factor), "{what}");
                    assert_eq!(clipped.skipped(), expected.skip(), "{what}");
                    if expected.skip() {
                        assert!(grads.is_empty(), "{what}");
                        // Under the policy `Error`, the clip returns an error, and the gradients are unchanged.
                        let (model, mut grads) = Model::with_gradients(tensors());
                        let error =
                            clipper(clip.non_finite(NonFinite::Error)).clip(&mut grads, &model).unwrap_err();
                        let first = expected.first_non_finite().map(|index| format!("biases.{index}"));
                        assert!(
                            matches!(&error, Error::NonFinite { parameter } if *parameter == first),
                            "{what}: {error}"
                        );
                        let bits =
                            |all: &[Vec<f32>]| all.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                        assert_eq!(bits(&model.biases_of(&grads)), bits(set), "{what}");
                        continue;
                    }
                    let after = model.biases_of(&grads).concat();
                    for (found, expected) in after.into_iter().zip(expected_after.concat()) {
                        assert!(same(found, expected), "{what}: {found}, not {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_loss_scale_is_removed() {
    for device in devices() {
        let (model, mut grads) = Model::with_gradients(vec![vector(&[3.0 * 1024.0, 4.0 * 1024.0], &device)]);
        let clipper = clipper(Clip::by_global_norm(10.0).loss_scale(1024.0));
        let clipped = clipper.clip(&mut grads, &model).unwrap();
        assert_eq!(values(clipped.norm()), [5.0]);
        assert_eq!(model.biases_of(&grads).concat(), [3.0, 4.0]);
    }
}

#[test]
fn by_value_clamps_and_keeps_nan() {
    for device in devices() {
        let gradient = vector(&[-3.0, 0.25, f32::NAN, 3.0, f32::NEG_INFINITY], &device);
        let (model, mut grads) = Model::with_gradients(vec![gradient]);
        clipper(Clip::by_value(0.5)).clip(&mut grads, &model).unwrap();
        let after = model.biases_of(&grads).concat();
        assert_eq!([after[0], after[1], after[3], after[4]], [-0.5, 0.25, 0.5, -0.5]);
        assert!(after[2].is_nan());
    }
}

/// The loss scale is removed before the bounds apply, and the quotient is rounded to the type of the gradient.
#[test]
fn by_value_removes_the_loss_scale() {
    for device in devices() {
        let numbers = [
            [-3.0, 0.25, f32::NAN, 3.0, f32::NEG_INFINITY, 1e-3, -0.0, 0.1],
            [0.3, -0.7, 8.0, 1e-5, 2.0, -9.0, 0.01, 7.0],
        ];
        for scale in [1024.0, 3.0, 1.0] {
            for dtype in [DType::F32, DType::F16] {
                let of = |numbers: &[f32]| {
                    let scaled: Vec<_> = numbers.iter().map(|x| x * scale).collect();
                    vector(&scaled, &device).cast(dtype)
                };
                let (model, mut grads) = Model::with_gradients(numbers.iter().map(|x| of(x)).collect());
                let before = model.biases_of(&grads);
                let clip = |limit: f32| Clip::by_value_range(-limit, 2.0 * limit).loss_scale(scale);
                let clipper = clipper(clip(0.25)).group(clip(0.5), |path| path == "biases.1").unwrap();
                let clipped = clipper.clip(&mut grads, &model).unwrap();
                assert_eq!(clipped.used_kernels(), device == Device::default());
                for ((before, after), limit) in before.iter().zip(model.biases_of(&grads)).zip([0.25, 0.5]) {
                    for (before, after) in before.iter().zip(after) {
                        let unscaled = before * scale.recip();
                        let unscaled =
                            if dtype == DType::F16 { f16::from_f32(unscaled).to_f32() } else { unscaled };
                        let expected = unscaled.clamp(-limit, 2.0 * limit);
                        let same = after == expected || after.is_nan() && before.is_nan();
                        assert!(same, "{after}, not {expected}, from {before} with scale {scale}, {dtype:?}");
                    }
                }
            }
        }
        // The scale may change from step to step.
        let mut clipper = clipper(Clip::by_value(1.0));
        for scale in [2.0, 8.0, 2.0] {
            clipper.set_clip(Clip::by_value(1.0).loss_scale(scale)).unwrap();
            let (model, mut grads) = Model::with_gradients(vec![vector(&[4.0, -1.0], &device)]);
            clipper.clip(&mut grads, &model).unwrap();
            assert_eq!(model.biases_of(&grads).concat(), [(4.0 / scale).min(1.0), -1.0 / scale]);
        }
    }
}

/// A finite bound beyond the range of f16 or bf16 becomes the largest finite number of the type.
#[test]
fn a_finite_bound_stays_finite_in_half_precision() {
    for device in devices() {
        let f16s = vec![f16::INFINITY, f16::from_f32(3.0), f16::NEG_INFINITY];
        let bf16s = vec![bf16::INFINITY, bf16::from_f32(3.0), bf16::NEG_INFINITY];
        let (model, mut grads) = Model::with_gradients(vec![
            Tensor::from_data(TensorData::new(f16s, [3]), (&device, DType::F16)),
            Tensor::from_data(TensorData::new(bf16s, [3]), (&device, DType::BF16)),
        ]);
        clipper(Clip::by_value(f32::MAX)).clip(&mut grads, &model).unwrap();
        let after = |index: usize| grads.get::<1>(model.biases[index].id).unwrap().into_data();
        let f16s: Vec<f16> = after(0).try_to_vec().unwrap();
        let bf16s: Vec<bf16> = after(1).try_to_vec().unwrap();
        assert_eq!(f16s, [f16::MAX, f16::from_f32(3.0), f16::MIN], "{device:?}");
        assert_eq!(bf16s, [bf16::MAX, bf16::from_f32(3.0), bf16::MIN], "{device:?}");
    }
}

/// The kernels clip half-precision gradients on devices without a feature for them.
#[test]
fn half_precision() {
    let device = Device::default();
    for length in [7, 8, 5000, 9001] {
        let wide: Vec<_> = noise(length, 5).iter().map(|x| x * 8.0).collect();
        let f16s: Vec<_> = wide.iter().map(|&x| f16::from_f32(x)).collect();
        let bf16s: Vec<_> = wide.iter().map(|&x| bf16::from_f32(x)).collect();
        let (model, mut grads) = Model::with_gradients(vec![
            Tensor::from_data(TensorData::new(f16s.clone(), [length]), (&device, DType::F16)),
            Tensor::from_data(TensorData::new(bf16s.clone(), [length]), (&device, DType::BF16)),
            vector(&wide, &device),
        ]);
        let before = vec![
            f16s.iter().map(|x| x.to_f32()).collect::<Vec<_>>(),
            bf16s.iter().map(|x| x.to_f32()).collect(),
            wide,
        ];
        let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
        let found = f64::from(values(clipped.norm())[0]);
        let expected = norm_of(&before);
        assert!((found - expected).abs() <= 3e-7 * expected, "{found}, not {expected}");
        let coef = clipped.records().unwrap()[0].clip_coef;
        let after = |index: usize| grads.get::<1>(model.biases[index].id).unwrap().into_data();
        let f16s: Vec<f16> = after(0).try_to_vec().unwrap();
        let bf16s: Vec<bf16> = after(1).try_to_vec().unwrap();
        for index in 0..length {
            assert_eq!(f16s[index], f16::from_f32(before[0][index] * coef), "f16, element {index}");
            assert_eq!(bf16s[index], bf16::from_f32(before[1][index] * coef), "bf16, element {index}");
        }
    }
}

#[test]
fn without_gradients_the_norm_is_zero() {
    for device in devices() {
        let model =
            Model { weights: Vec::new(), biases: vec![Param::from_tensor(Tensor::zeros([3], &device))] };
        let mut grads = GradientsParams::new();
        let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
        assert_eq!(values(clipped.norm()), [0.0]);
        assert_eq!(clipped.records().unwrap()[0].clip_coef, 1.0);
        assert!(clipped.parameters().is_empty());
    }
}

#[test]
fn f64_gradients_stay_f64() {
    let device = Device::flex();
    let before = [1.0 / 3.0, 1e-9, -0.7_f64];
    for (limit, factor) in [(1e3, 1.0), (0.07, 0.1)] {
        let gradient = Tensor::<1>::from_data(TensorData::from(before), (&device, DType::F64));
        let (model, mut grads) = Model::with_gradients(vec![gradient]);
        let clipper = clipper(Clip::by_global_norm(limit).norm_type(NormType::Inf).epsilon(Epsilon::None));
        let clipped = clipper.clip(&mut grads, &model).unwrap();
        assert!(!clipped.used_kernels());
        let coef = f64::from(clipped.records().unwrap()[0].clip_coef);
        assert!((coef - factor).abs() < 1e-7, "{coef}");
        let after: Vec<f64> = grads.get::<1>(model.biases[0].id).unwrap().into_data().try_to_vec().unwrap();
        assert_eq!(after, before.map(|x| x * coef));
    }
}

/// Finite gradients whose norm or factor is beyond the range of f32 are scaled, and no policy zeroes or skips them.
#[test]
fn norms_and_factors_beyond_f32() {
    let sets = [vec![vec![3e38; 4]], vec![vec![3e38, -3e38, 1.0], Vec::new(), vec![1e30; 33]]];
    let norms = [NormType::L2, NormType::L1, NormType::Inf, NormType::P(3.0)];
    for device in devices() {
        for (before, norm_type) in sets.iter().flat_map(|before| norms.map(|norm_type| (before, norm_type))) {
            for (limit, scale) in [(1.0, 1.0), (1e-10, 1.0), (1e38, 1.0), (1.0, 1024.0), (1e-3, 0.25)] {
                for policy in [NonFinite::Skip, NonFinite::Zero, NonFinite::Propagate] {
                    let tensors = before.iter().map(|g| vector(g, &device)).collect();
                    let (model, mut grads) = Model::with_gradients(tensors);
                    let clip = Clip::by_global_norm(limit).norm_type(norm_type).non_finite(policy);
                    let clipped = clipper(clip.loss_scale(scale)).clip(&mut grads, &model).unwrap();
                    let what = format!("{norm_type:?} to {limit} with {scale} and {policy:?} on {device:?}");
                    let record = clipped.records().unwrap()[0];
                    assert!(!record.non_finite() && !record.skip() && record.clipped(), "{what}: {record:?}");
                    let slices: Vec<&[f32]> = before.iter().map(Vec::as_slice).collect();
                    let norm = gradclip::reference::norm(&slices, norm_type) / f64::from(scale);
                    let found = f64::from(record.norm_significand) * f64::from(record.norm_exponent).exp2();
                    assert!((found / norm - 1.0).abs() < 1e-5, "{what}: {found}, not {norm}");
                    let factor = f64::from(limit) / norm / f64::from(scale);
                    let found =
                        f64::from(record.factor_significand) * f64::from(record.factor_exponent).exp2();
                    assert!((found / factor - 1.0).abs() < 1e-5, "{what}: {found}, not {factor}");
                    let after = model.biases_of(&grads);
                    for (before, after) in before.iter().flatten().zip(after.iter().flatten()) {
                        let (after, expected) = (f64::from(*after), f64::from(*before) * factor);
                        let most = 1e-5 * expected.abs() + f64::from(f32::MIN_POSITIVE);
                        assert!((after - expected).abs() <= most, "{what}: {after}, not {expected}");
                    }
                }
            }
        }
    }
}
