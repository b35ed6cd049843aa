//! Gradients from several threads and on several devices.

use burn::tensor::Device;
use gradclip_burn::{Clip, ZClip};

use crate::{Model, assert_clipped, clipper, devices, noise, vector};

/// Burn has one queue for each thread.
#[test]
fn gradients_computed_by_other_threads() {
    for device in devices() {
        let make = |seed: u32, device: Device| move || vector(&noise(9000, seed), &device) * 3.0;
        for round in 0..10_u32 {
            let threads =
                [round * 2 + 1, round * 2 + 2].map(|seed| std::thread::spawn(make(seed, device.clone())));
            let tensors: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            let before: Vec<Vec<_>> = [round * 2 + 1, round * 2 + 2]
                .map(|seed| noise(9000, seed).iter().map(|x| x * 3.0).collect())
                .to_vec();
            let (model, mut grads) = Model::with_gradients(tensors);
            let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
            assert_clipped(&before, &model.biases_of(&grads), clipped.norm(), 1.0);
        }
    }
}

#[test]
fn several_threads_share_one_clipper() {
    for device in devices() {
        let clipper = clipper(Clip::by_global_norm(1.0));
        let threads: Vec<_> = (0..4_u32)
            .map(|thread| {
                let (clipper, device) = (clipper.clone(), device.clone());
                std::thread::spawn(move || {
                    for step in 0..10 {
                        // Some threads use the same shapes, and therefore share cached tables.
                        let before =
                            vec![noise(5000, thread * 100 + step + 1), noise(9 + thread as usize / 2, 3)];
                        let tensors = before.iter().map(|g| vector(g, &device) * 1.0).collect();
                        let (model, mut grads) = Model::with_gradients(tensors);
                        let clipped = clipper.clip(&mut grads, &model).unwrap();
                        assert_clipped(&before, &model.biases_of(&grads), clipped.norm(), 1.0);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn gradients_on_several_devices_have_one_norm() {
    let [gpu, cpu] = devices();
    let before = vec![noise(300, 1), noise(500, 2), noise(7, 3)];
    let tensors = vec![vector(&before[0], &gpu), vector(&before[1], &cpu), vector(&before[2], &gpu)];
    let (model, mut grads) = Model::with_gradients(tensors);
    let clipped = clipper(Clip::by_global_norm(1.0)).clip(&mut grads, &model).unwrap();
    assert_clipped(&before, &model.biases_of(&grads), clipped.norm(), 1.0);
    assert_eq!(grads.get::<1>(model.biases[1].id).unwrap().device(), cpu);
}

/// The state of a clipper is locked while a clip adds to it.
#[test]
fn concurrent_clips_of_clones_count_every_step() {
    for device in devices() {
        let clip = Clip::by_global_norm(f32::INFINITY).z_clip(ZClip { warm_up: 40, ..ZClip::default() });
        let clipper = clipper(clip.count_steps());
        let threads: Vec<_> = (0..4_u32)
            .map(|thread| {
                let (clipper, device) = (clipper.clone(), device.clone());
                std::thread::spawn(move || {
                    for _ in 0..10 {
                        let gradient = vector(&vec![1.0; 16 * (thread as usize + 1).pow(2)], &device) * 1.0;
                        let (model, mut grads) = Model::with_gradients(vec![gradient]);
                        clipper.clip(&mut grads, &model).unwrap();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let counts = clipper.step_counts().unwrap()[0];
        assert_eq!((counts.steps, counts.clipped, counts.largest_norm), (40, 0, 16.0), "on {device:?}");
        // The norms are 4, 8, 12 and 16, in any order.
        let history = clipper.norm_histories().unwrap()[0];
        assert_eq!(history.steps, 40);
        assert!((history.mean - 10.0).abs() < 1e-4 && (history.deviation - 20.0_f32.sqrt()).abs() < 1e-4);
    }
}
