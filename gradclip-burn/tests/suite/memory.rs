//! Burn's memory: shared buffers, strided layouts, neighbours in a page, and buffers that move.

use burn::Tensor;
use burn::module::Param;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Slice, TensorData};
use gradclip_burn::Clip;

use crate::{Model, assert_clipped, clipper, devices, noise, values, vector};

fn pair(device: &Device, length: usize) -> [Param<Tensor<1>>; 2] {
    [1, 2].map(|seed| Param::from_tensor(vector(&noise(length, seed), device)))
}

fn model(biases: &[Param<Tensor<1>>]) -> Model {
    Model { weights: Vec::new(), biases: biases.to_vec() }
}

/// The two gradients of `p + q` share one buffer. Scaling both in place would scale it twice.
#[test]
fn gradients_that_share_one_buffer() {
    for device in devices() {
        let [p, q] = pair(&device.autodiff(), 4100);
        let model = model(&[p.clone(), q.clone()]);
        let loss = || (p.val() + q.val()).square().sum();
        let before = model.biases_of(&GradientsParams::from_grads(loss().backward(), &model));
        for _ in 0..3 {
            let mut grads = GradientsParams::from_grads(loss().backward(), &model);
            let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
            assert_clipped(&before, &model.biases_of(&grads), clipped.norm(), 1.0);
        }
    }
}

/// A tensor keeps its values if the caller holds it, or if a lazy operation has yet to read it.
#[test]
fn tensors_that_the_caller_or_a_lazy_operation_holds() {
    for device in devices() {
        let before = vec![noise(5001, 1), noise(64, 2)];
        let tensors: Vec<_> = before.iter().map(|g| vector(g, &device)).collect();
        let (model, mut grads) = Model::with_gradients(tensors.clone());
        let lazily = tensors[0].clone() * 2.0;
        let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
        assert_clipped(&before, &model.biases_of(&grads), clipped.norm(), 1.0);
        let held: Vec<_> = tensors.into_iter().map(values).collect();
        assert_eq!(held, before, "a tensor of the caller changed on {device:?}");
        let doubled: Vec<_> = before[0].iter().map(|x| x * 2.0).collect();
        assert_eq!(values(lazily), doubled);
    }
}

/// Both gradients of `cat` are views of one allocation.
#[test]
fn views_of_one_allocation() {
    for device in devices() {
        let device = device.autodiff();
        let [p, q] = pair(&device, 4096);
        let model = model(&[p.clone(), q.clone()]);
        let weights = vector(&noise(8192, 9), &device);
        let loss = || (Tensor::cat(vec![p.val(), q.val()], 0) * weights.clone()).sum();
        let before = model.biases_of(&GradientsParams::from_grads(loss().backward(), &model));
        let mut grads = GradientsParams::from_grads(loss().backward(), &model);
        let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
        assert_clipped(&before, &model.biases_of(&grads), clipped.norm(), 1.0);
    }
}

/// Views whose elements are not adjacent in memory, with and without another tensor that shares the memory.
#[test]
fn transposed_padded_and_broadcast_layouts() {
    for device in devices() {
        let base = |seed| Tensor::<2>::from_data(TensorData::new(noise(60 * 50, seed), [60, 50]), &device);
        let layout = |index| match index {
            0 => base(1).transpose(),
            1 => base(2).slice([8..24, 0..50]),
            2 => base(3).slice([0..60, 3..20]),
            3 => base(4).slice([0..60, 1..7]).transpose(),
            4 => vector(&noise(50, 5), &device).unsqueeze::<2>().expand([60, 50]),
            _ => base(6).slice([Slice::new(0, None, 2), Slice::new(1, Some(40), 3)]),
        };
        for held in [false, true] {
            for index in 0..6 {
                let model = Model::new(&[[1, 1]], &[7], &device);
                let before = vec![values(layout(index)), noise(7, 6)];
                let shape = layout(index).shape();
                let mut grads = GradientsParams::new();
                let gradient = layout(index);
                let holder = held.then(|| gradient.clone());
                grads.register(model.weights[0].id, gradient);
                grads.register(model.biases[0].id, vector(&noise(7, 6), &device));
                let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
                println!("layout {index} on {device:?}, held: {held}");
                assert_eq!(grads.get::<2>(model.weights[0].id).unwrap().shape(), shape);
                assert_clipped(&before, &model.gradients(&grads), clipped.norm(), 1.0);
                if let Some(holder) = holder {
                    assert_eq!(values(holder), before[0]);
                }
            }
        }
    }
}

/// A transposed gradient that shares no memory is clipped in place and stays transposed.
#[test]
fn a_permutation_is_clipped_in_place() {
    for device in devices() {
        let before = noise(64 * 48, 1);
        let model = Model::new(&[[1, 1]], &[], &device);
        let mut grads = GradientsParams::new();
        let gradient = Tensor::<2>::from_data(TensorData::new(before.clone(), [64, 48]), &device);
        grads.register(model.weights[0].id, gradient.transpose());
        let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
        let after = grads.get::<2>(model.weights[0].id).unwrap();
        assert_eq!(after.shape().dims(), [48, 64]);
        assert_clipped(&[before], &[values(after.transpose())], clipped.norm(), 1.0);
    }
}

/// Small tensors share pages. The tensors between the gradients stay unchanged.
#[test]
fn neighbours_in_a_page() {
    for device in devices() {
        let mut gradients = Vec::new();
        let mut neighbours = Vec::new();
        for index in 0..60 {
            gradients.push(noise(1 + index % 13, u32::try_from(index).unwrap() + 1));
            neighbours.push(vector(&noise(5, 1000), &device));
            neighbours.push(vector(gradients.last().unwrap(), &device));
        }
        let tensors: Vec<_> = neighbours.iter().skip(1).step_by(2).cloned().collect();
        let (model, mut grads) = Model::with_gradients(tensors.into_iter().map(|t| t * 1.0).collect());
        let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
        assert_clipped(&gradients, &model.biases_of(&grads), clipped.norm(), 1.0);
        for (index, neighbour) in neighbours.into_iter().enumerate() {
            let expected = if index % 2 == 0 { noise(5, 1000) } else { gradients[index / 2].clone() };
            assert_eq!(values(neighbour), expected);
        }
    }
}

/// Memory is freed, reused and cleaned up between the steps. The tables that the clipper caches on the device stay
/// valid.
#[test]
fn memory_that_moves_between_steps() {
    let device = Device::default();
    let clipper = clipper(Clip::by_global_norm(1.0));
    for step in 0..12_u32 {
        let ballast: Vec<_> = (0..6)
            .map(|i| Tensor::<1>::ones([50_000 * (1 + (step as usize + i) % 5)], &device) * 2.0)
            .collect();
        let before = vec![noise(30_000, step + 1), noise(33, step + 50)];
        let (model, mut grads) =
            Model::with_gradients(before.iter().map(|g| vector(g, &device) * 1.0).collect());
        drop(ballast);
        if step % 3 == 0 {
            device.memory_cleanup();
        }
        let clipped = clipper.clip(&mut grads, &model).unwrap();
        assert_clipped(&before, &model.biases_of(&grads), clipped.norm(), 1.0);
    }
}
