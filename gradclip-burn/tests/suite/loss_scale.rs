//! A dynamic loss scale, compared with gradclip's CPU path step by step.

use burn::module::Param;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{DType, Device, Tensor};
use gradclip::cpu;
use gradclip_burn::{
    Clip, ClipRecord, ClippedOptimizer, Error, GradClipper, LossScale, NonFinite, NormType, ZClip,
};

use crate::state::{
    SIZES, assert_same_counts, assert_same_elements, assert_same_records, clip_on_the_cpu, close,
    gradients_on, step,
};
use crate::{Model, clipper, devices, noise, values, vector};

/// Returns a scale that changes often: it grows after two good steps, and reaches its floor after some overflows.
fn scale() -> LossScale {
    let scale = LossScale::new(1024.0).and_then(|scale| scale.growth(4.0, 2)?.backoff(0.25)?.floor(100.0));
    scale.expect("valid options")
}

/// Returns gradients of a scaled loss.
fn scaled(gradients: &[Vec<f32>], scale: f32) -> Vec<Vec<f32>> {
    gradients.iter().map(|gradient| gradient.iter().map(|x| x * scale).collect()).collect()
}

/// Returns sizes of gradients: extremes, good steps, and overflows in a row.
fn sizes() -> Vec<f32> {
    let overflows = [f32::INFINITY, f32::NAN, f32::INFINITY, 1.0, f32::NAN, f32::NAN];
    SIZES.into_iter().chain(overflows).chain([1.0; 6]).chain([f32::NAN, 2.0, 0.5]).collect()
}

#[test]
fn the_scale_follows_the_rule_of_the_cpu_path() {
    let norm = |limit: f32| Clip::by_global_norm(limit).dynamic_loss_scale(scale());
    let clips: [(Clip, &[usize]); 9] = [
        (norm(1.0), &[0; 3]),
        (norm(2.0).tensor_stats().count_steps(), &[0, 1, 0]),
        (norm(1.0).non_finite(NonFinite::Propagate), &[0; 3]),
        (norm(1.0).non_finite(NonFinite::Zero).skip_above(3.95), &[0, 0, 1]),
        (norm(1.0).coefficient_only().non_finite(NonFinite::Poison), &[0; 3]),
        (norm(f32::INFINITY).z_clip(ZClip { warm_up: 4, ..ZClip::default() }), &[0; 3]),
        (Clip::by_norm(3.0).norm_type(NormType::L1).dynamic_loss_scale(scale()).tensor_stats(), &[0, 0, 1]),
        (Clip::by_rms(0.5).dynamic_loss_scale(scale()).non_finite(NonFinite::Zero), &[0; 3]),
        (norm(1.0).norm_type(NormType::P(0.0)), &[0; 3]),
    ];
    for device in devices() {
        for (clip, groups) in clips {
            let mut plan = cpu::ClipPlan::new(&vec![clip; 1 + groups.iter().max().unwrap()]).unwrap();
            let clipper = match groups.iter().position(|&group| group == 1) {
                Some(index) => {
                    let path = format!("biases.{index}");
                    clipper(clip).group(clip, move |found| found == path).unwrap()
                }
                None => clipper(clip),
            };
            let (mut scales, mut at_floor) = (Vec::new(), 0);
            for (index, size) in sizes().into_iter().enumerate() {
                let what = format!("step {index} of {clip:?} on {device:?}");
                let expected_scale = *plan.loss_scale().unwrap();
                scales.push(expected_scale.scale());
                let scale = clipper.loss_scale_on(&device).unwrap();
                assert_eq!(values(scale), [expected_scale.scale()], "{what}");
                let before = scaled(&step(size), expected_scale.scale());
                let (expected, expected_after) = clip_on_the_cpu(&mut plan, &before, groups, None);
                let (model, mut grads) = gradients_on(&device, &before);
                let clipped = clipper.clip(&mut grads, &model).unwrap();
                assert_eq!(clipped.used_kernels(), device == devices()[0]);
                let records = clipped.records().unwrap();
                assert_same_records(&records, &expected, &what);
                let floors = |records: &[ClipRecord]| {
                    records.iter().map(ClipRecord::scale_at_floor).collect::<Vec<_>>()
                };
                assert_eq!(floors(&records), floors(&expected), "{what}");
                at_floor += usize::from(floors(&expected).contains(&true));
                let factors = values(clipped.factor());
                assert!(factors.iter().zip(&records).all(|(&f, record)| close(f, record.factor)), "{what}");
                assert_eq!(clipped.skipped(), expected.iter().any(ClipRecord::skip), "{what}");
                if clipped.skipped() {
                    assert!(grads.is_empty(), "{what}");
                } else {
                    assert_same_elements(&model.biases_of(&grads), &expected_after, &what);
                }
                for ((_, found), expected) in clipped.tensor_stats().unwrap().iter().zip(plan.tensor_stats())
                {
                    assert!(close(found.norm, expected.norm), "{what}: {found:?}, not {expected:?}");
                    assert!(close(found.max_magnitude, expected.max_magnitude), "{what}");
                    assert_eq!((found.zeros, found.non_finite), (expected.zeros, expected.non_finite));
                }
                if index % 5 == 4 {
                    assert_eq!(clipper.loss_scale().unwrap(), *plan.loss_scale().unwrap(), "{what}");
                }
            }
            assert!(at_floor > 1 && scales.contains(&100.0) && scales.contains(&4096.0), "{scales:?}");
            assert_same_counts(&clipper.step_counts().unwrap(), plan.step_counts(), "counts");
            assert_eq!(clipper.loss_scale().unwrap(), *plan.loss_scale().unwrap());
        }
    }
}

/// A single workgroup concludes more records than it has invocations. Any of them may overflow.
#[test]
fn each_of_many_gradients_can_shrink_the_scale() {
    for device in devices() {
        let count = if device == devices()[0] { 300 } else { 30 };
        let clip = Clip::by_norm(0.5).dynamic_loss_scale(scale()).non_finite(NonFinite::Zero);
        let (clipper, mut plan) = (clipper(clip), cpu::ClipPlan::new(&[clip]).unwrap());
        for overflow in [None, Some(count - 1), None, Some(0), Some(count / 2 + 3), None, None] {
            let mut before: Vec<_> = (0..count).map(|index| noise(1 + index % 5, 7)).collect();
            if let Some(index) = overflow {
                before[index][0] = f32::NEG_INFINITY;
            }
            let before = scaled(&before, plan.loss_scale().unwrap().scale());
            let (expected, expected_after) = clip_on_the_cpu(&mut plan, &before, &vec![0; count], None);
            let (model, mut grads) = gradients_on(&device, &before);
            let clipped = clipper.clip(&mut grads, &model).unwrap();
            assert_same_records(&clipped.records().unwrap(), &expected, "record");
            assert_same_elements(&model.biases_of(&grads), &expected_after, "element");
            assert_eq!(clipper.loss_scale().unwrap(), *plan.loss_scale().unwrap(), "{overflow:?}");
        }
    }
}

/// The norm of a parameter has no loss scale, and a NaN in it is no overflow.
#[test]
fn limits_relative_to_parameters_have_no_loss_scale() {
    for device in devices() {
        let clip = Clip::by_parameter_norm(0.1, 1e-3).dynamic_loss_scale(scale()).non_finite(NonFinite::Zero);
        let (clipper, mut plan) = (clipper(clip), cpu::ClipPlan::new(&[clip]).unwrap());
        for (gradient, parameter) in [(1.0, 3.0), (1.0, f32::NAN), (f32::NAN, 2.0), (2.0, 1.0)] {
            let scale = plan.loss_scale().unwrap().scale();
            let mut expected = [gradient * scale, 0.5 * scale];
            let parameter = [parameter, 4.0];
            let of_cpu = cpu::Gradient::f32(&mut expected).parameter(cpu::Parameter::f32(&parameter));
            let expected_records = plan.clip(&mut [of_cpu]).unwrap();
            let parameter = Param::from_tensor(vector(&parameter, &device));
            let mut grads = GradientsParams::new();
            grads.register(parameter.id, vector(&[gradient * scale, 0.5 * scale], &device));
            let model = Model { weights: Vec::new(), biases: vec![parameter] };
            let clipped = clipper.clip(&mut grads, &model).unwrap();
            assert_same_records(&clipped.records().unwrap(), &expected_records, "record");
            assert_same_elements(&model.biases_of(&grads), &[expected.to_vec()], "element");
            assert_eq!(clipper.loss_scale().unwrap(), *plan.loss_scale().unwrap());
        }
    }
}

#[test]
fn a_supplied_norm_that_is_not_finite_is_an_overflow() {
    for device in devices() {
        let clip = Clip::by_supplied_norm(1.0).dynamic_loss_scale(scale());
        let (clipper, mut plan) = (clipper(clip), cpu::ClipPlan::new(&[clip]).unwrap());
        for norm in [1.0, 3e38, f32::INFINITY, 2.0, f32::NAN, -1.0, 0.5, 0.25] {
            let before = scaled(&[vec![1.0, 2.0]], plan.loss_scale().unwrap().scale());
            let (expected, _) = clip_on_the_cpu(&mut plan, &before, &[0], Some(norm));
            let (model, mut grads) = gradients_on(&device, &before);
            let clipped = clipper.clip_with_norm(&mut grads, &model, norm).unwrap();
            assert_same_records(&clipped.records().unwrap(), &expected, &format!("norm {norm}"));
            assert_eq!(clipper.loss_scale().unwrap(), *plan.loss_scale().unwrap(), "norm {norm}");
        }
    }
}

/// Makes a step of a real backward pass: the gradient of `p · factors` is `factors`.
fn step_with(clipper: &GradClipper, factors: &[f32], device: &Device) -> (ClipRecord, Vec<f32>) {
    let autodiff = device.clone().autodiff();
    let parameter = Param::from_tensor(vector(&vec![1.0; factors.len()], &autodiff));
    let model = Model { weights: Vec::new(), biases: vec![parameter.clone()] };
    let loss = (parameter.val() * vector(factors, &autodiff)).sum();
    let loss = clipper.scale_loss(loss).expect("a dynamic loss scale");
    let mut grads = GradientsParams::from_grads(loss.backward(), &model);
    let scaled = model.biases_of(&grads).remove(0);
    let records = clipper.clip(&mut grads, &model).and_then(|clipped| clipped.records());
    (records.expect("a valid clip")[0], scaled)
}

#[test]
fn a_scaled_loss_has_scaled_gradients() {
    for device in devices() {
        let clipper = clipper(Clip::by_global_norm(1.0).dynamic_loss_scale(scale()));
        for expected in [1024.0, 1024.0, 4096.0, 4096.0] {
            let (record, gradient) = step_with(&clipper, &[3.0, 4.0], &device);
            assert_eq!((record.total_norm, gradient), (5.0, vec![3.0 * expected, 4.0 * expected]));
        }
        assert_eq!(clipper.loss_scale().unwrap().scale(), 16384.0);
    }
}

/// The product would exceed f16.
#[test]
fn a_loss_in_half_precision_becomes_an_f32_loss() {
    let device = Device::flex().autodiff();
    let clipper = clipper(Clip::by_global_norm(1.0).dynamic_loss_scale(LossScale::default()));
    for dtype in [DType::F16, DType::BF16] {
        let parameter = vector(&[3.0, 4.0], &device).cast(dtype).require_grad();
        let loss = clipper.scale_loss(parameter.clone().sum()).unwrap();
        assert_eq!((loss.dtype(), values(loss.clone())), (DType::F32, vec![7.0 * 65536.0]));
        let matrix = clipper.scale_loss(Tensor::<2>::ones([1, 1], &device)).unwrap();
        assert_eq!(values(matrix), [65536.0]);
    }
    let double = Tensor::<1>::ones([1], &device).cast(DType::F64);
    assert_eq!(clipper.scale_loss(double).unwrap().dtype(), DType::F64);
}

/// A later clip does not change a scale that the caller holds, although both share memory.
#[test]
fn a_scale_that_the_caller_holds_does_not_change() {
    for device in devices() {
        let clipper = clipper(Clip::by_global_norm(1.0).dynamic_loss_scale(scale()));
        let mut held = vec![clipper.loss_scale_on(&device).unwrap()];
        for factor in [1.0, f32::INFINITY, 1.0, 1.0] {
            step_with(&clipper, &[factor], &device);
            held.push(clipper.loss_scale_on(&device).unwrap());
        }
        let held: Vec<_> = held.into_iter().flat_map(values).collect();
        assert_eq!(held, [1024.0, 1024.0, 256.0, 256.0, 1024.0], "on {device:?}");
    }
}

#[test]
fn clones_share_the_scale_and_a_checkpoint_restores_it() {
    for device in devices() {
        let clip = Clip::by_global_norm(1.0).dynamic_loss_scale(scale());
        let original = clipper(clip);
        let clone = original.clone();
        assert_eq!(clone.loss_scale().unwrap(), scale());
        let run = |clipper: &GradClipper, factors: &[f32]| -> Vec<f32> {
            factors.iter().map(|&factor| step_with(clipper, &[factor], &device).1[0] / factor).collect()
        };
        run(&original, &[1.0, 2.0]);
        run(&clone, &[1.0]);
        let saved = pollster::block_on(original.loss_scale_async()).unwrap();
        assert_eq!((saved.scale(), saved.good_steps()), (4096.0, 1));

        let restored = clipper(Clip::by_global_norm(1.0).dynamic_loss_scale(LossScale::default()));
        restored.set_loss_scale(LossScale::from_state(saved.state()).unwrap()).unwrap();
        assert_eq!(restored.loss_scale().unwrap(), saved);
        let more = [1.0, 1.0, 1.0, 0.5, 0.5];
        let expected = run(&original, &more);
        assert_eq!(expected, [4096.0, 16384.0, 16384.0, 65536.0, 65536.0]);
        assert_eq!(run(&restored, &more), expected);
        assert_eq!(restored.loss_scale().unwrap(), clone.loss_scale().unwrap());

        // Another limit or another scale in the options keeps the scale.
        let mut changed = restored;
        for limit in [0.5, 2.0, 0.25] {
            let other = Clip::by_global_norm(limit).dynamic_loss_scale(LossScale::new(2.0).unwrap());
            let other = if limit == 2.0 { other } else { other.epsilon(gradclip_burn::Epsilon::None) };
            changed.set_clip(other).unwrap();
            let expected = changed.loss_scale().unwrap().scale();
            let (record, gradient) = step_with(&changed, &[4.0], &device);
            assert_eq!((gradient, record.total_norm), (vec![4.0 * expected], 4.0));
            assert!((record.clip_coef * 4.0 / limit - 1.0).abs() < 1e-6, "{record:?}");
        }
        let after = changed.loss_scale().unwrap().state();
        assert_eq!((after.growth, after.interval), (4.0, 2));

        // The scale starts again on request, and counts may exceed a signed integer.
        let long = LossScale::new(8.0).unwrap().growth(2.0, u32::MAX).unwrap();
        let near = gradclip_burn::LossScaleState { good_steps: i32::MAX.cast_unsigned() - 1, ..long.state() };
        changed.set_loss_scale(LossScale::from_state(near).unwrap()).unwrap();
        run(&changed, &[1.0]);
        assert_eq!(changed.loss_scale().unwrap().good_steps(), near.good_steps + 1);
        assert_eq!(changed.loss_scale().unwrap().scale(), 8.0);
    }
}

/// The kernels and the tensor operations continue each other's scale, and a loss may be on either device.
#[test]
fn the_scale_follows_the_gradients_to_another_device() {
    let clip = Clip::by_global_norm(1.0).dynamic_loss_scale(scale());
    let (clipper, mut plan) = (clipper(clip), cpu::ClipPlan::new(&[clip]).unwrap());
    for (index, size) in sizes().into_iter().enumerate() {
        let [here, there] = [index / 2 % 2, (index / 2 + 1) % 2].map(|device| devices()[device].clone());
        let expected_scale = plan.loss_scale().unwrap().scale();
        assert_eq!(values(clipper.loss_scale_on(&there).unwrap()), [expected_scale], "step {index}");
        let before = scaled(&step(size), expected_scale);
        let (expected, _) = clip_on_the_cpu(&mut plan, &before, &[0; 3], None);
        let (model, mut grads) = gradients_on(&here, &before);
        let clipped = clipper.clip(&mut grads, &model).unwrap();
        assert_same_records(&clipped.records().unwrap(), &expected, &format!("step {index}"));
        assert_eq!(clipper.loss_scale().unwrap(), *plan.loss_scale().unwrap(), "step {index}");
    }
}

/// Burn has one queue for each thread.
#[test]
fn losses_may_be_scaled_on_other_threads() {
    for device in devices() {
        let clipper = clipper(Clip::by_global_norm(1.0).dynamic_loss_scale(scale()));
        for expected in [1024.0, 1024.0, 4096.0, 4096.0, 16384.0] {
            let threads = [1.0, 2.0].map(|factor| {
                let (clipper, device) = (clipper.clone(), device.clone());
                std::thread::spawn(move || clipper.loss_scale_on(&device).unwrap() * factor)
            });
            let gradients = threads.map(|thread| thread.join().unwrap()).to_vec();
            let (model, mut grads) = Model::with_gradients(gradients);
            assert_eq!(model.biases_of(&grads), [[expected], [2.0 * expected]]);
            let (clipper, model) = (clipper.clone(), model);
            let clipped = std::thread::spawn(move || clipper.clip(&mut grads, &model).unwrap());
            let norm = values(clipped.join().unwrap().norm())[0];
            assert!(close(norm, 5.0_f32.sqrt()), "{norm}");
        }
    }
}

/// A skipped step changes neither the parameters nor the momentum.
#[test]
fn an_overflow_leaves_the_parameters_alone() {
    for device in devices() {
        let autodiff = device.clone().autodiff();
        let clipper = clipper(Clip::by_global_norm(1.0).dynamic_loss_scale(scale()));
        let mut optimizer = ClippedOptimizer::new(SgdConfig::new().init(), clipper);
        let parameter = Param::from_tensor(vector(&[1.0, 1.0], &autodiff));
        let mut model = Model { weights: Vec::new(), biases: vec![parameter] };
        let mut history = Vec::new();
        for factors in [[0.25, 0.5], [f32::INFINITY, 1.0], [0.5, 0.25]] {
            let loss = (model.biases[0].val() * vector(&factors, &autodiff)).sum();
            let scaled = optimizer.clipper.scale_loss(loss).unwrap();
            let grads = GradientsParams::from_grads(scaled.backward(), &model);
            model = optimizer.step(1.0, model, grads).unwrap();
            history.push((optimizer.last().unwrap().skipped(), values(model.biases[0].val().inner())));
        }
        let expected = [(false, vec![0.75, 0.5]), (true, vec![0.75, 0.5]), (false, vec![0.25, 0.25])];
        assert_eq!(history, expected, "on {device:?}");
        let counts = optimizer.clipper.step_counts().unwrap()[0];
        assert_eq!((counts.steps, counts.skipped, counts.taken()), (3, 1, 2));
    }
}

#[test]
fn a_clip_without_a_dynamic_scale_has_none() {
    use gradclip::Error as Core;
    let not_enabled = |error: Error| {
        let expected = Core::NotEnabled { what: "dynamic loss scale", with: "dynamic_loss_scale" };
        assert!(matches!(&error, Error::Clip(found) if *found == expected), "{error}");
    };
    for device in devices() {
        for clip in [Clip::by_global_norm(1.0).loss_scale(8.0), Clip::by_value(1.0)] {
            let plain = clipper(clip);
            not_enabled(plain.loss_scale().unwrap_err());
            not_enabled(plain.loss_scale_on(&device).unwrap_err());
            not_enabled(plain.scale_loss(vector(&[1.0], &device)).unwrap_err());
            not_enabled(plain.set_loss_scale(LossScale::default()).unwrap_err());
        }
    }
    // All groups have one scale.
    let clip = Clip::by_global_norm(1.0);
    let other = clip.dynamic_loss_scale(LossScale::default());
    assert!(matches!(clipper(clip).group(other, |_| true), Err(Error::Clip(Core::GroupsDiffer { .. }))));
}
