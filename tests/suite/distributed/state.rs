//! Limits that follow past norms, loss scales and counts: the same on all ranks, and those of the unsharded clip.

use gradclip::distributed::{AllReduce as _, ShardedClip, SingleProcess};
use gradclip::loss_scale::LossScale;
use gradclip::{AutoClip, Clip, ClipRecord, DType, Gradient, NonFinite, ZClip, bytemuck, cpu};

use super::ranks::ranks;
use crate::gpu;

const STEPS: usize = 30;

fn clips() -> Vec<Clip> {
    let clip = Clip::by_global_norm(4.0).count_steps();
    let scale = LossScale::new(1024.0).unwrap().growth(2.0, 5).unwrap();
    vec![
        clip.z_clip(ZClip { warm_up: 4, ..ZClip::default() }),
        clip.auto_clip(AutoClip { percentile: 40.0, window: 6 }),
        clip.skip_above(6.0).max_consecutive_skips(2),
        clip.dynamic_loss_scale(scale).non_finite(NonFinite::Skip),
        clip.loss_scale(64.0).non_finite(NonFinite::Zero),
        Clip::by_norm(0.5).z_clip(ZClip { warm_up: 3, ..ZClip::default() }),
    ]
}

/// The gradients of a step: two of them, with spikes, and now and then an infinity.
fn gradients(step: usize) -> [Vec<f32>; 2] {
    let spike = if step % 7 == 6 { 30.0 } else { 1.0 };
    let mut first: Vec<f32> =
        (0..12).map(|at| spike * (0.3 + ((step * 5 + at * 3) % 11) as f32 / 8.0)).collect();
    if step % 9 == 8 {
        first[3] = f32::INFINITY;
    }
    let second = (0..8).map(|at| ((step + at) % 5) as f32 - 2.0).collect();
    [first, second]
}

/// The elements of a rank: a contiguous part of each gradient.
fn shard(step: usize, rank: usize, size: usize) -> [Vec<f32>; 2] {
    gradients(step).map(|all| {
        let at = |rank: usize| all.len() * rank / size;
        all[at(rank)..at(rank + 1)].to_vec()
    })
}

#[derive(Debug, PartialEq)]
struct Outcome {
    records: Vec<Vec<ClipRecord>>,
    state: String,
}

fn state(clip: &ShardedClip) -> String {
    format!("{:?}", (clip.step_counts(), clip.histories(), clip.norm_windows(), clip.loss_scale()))
}

fn run(clip: Clip, size: usize) -> Vec<Outcome> {
    ranks(size, 1, |rank| {
        let mut sharded = ShardedClip::new(&[clip]).unwrap();
        let mut records = Vec::new();
        for step in 0..STEPS {
            let mut elements = shard(step, rank.rank(), size);
            let mut gradients: Vec<_> =
                elements.iter_mut().map(|elements| cpu::Gradient::f32(elements)).collect();
            let share = sharded.measure_on_cpu(&gradients);
            let joined = sharded.join([share], rank).unwrap();
            sharded.scale_on_cpu(&mut gradients, &joined).unwrap();
            records.push(joined);
            if step == STEPS / 2 {
                // A checkpoint. A clip without such state returns an error, and has nothing to restore.
                let mut restored = ShardedClip::new(&[clip]).unwrap();
                restored.set_step_counts(sharded.step_counts()).unwrap();
                let _ = restored.set_histories(sharded.histories());
                let _ = restored.set_norm_windows(sharded.norm_windows());
                if let Some(scale) = sharded.loss_scale() {
                    restored.set_dynamic_loss_scale(*scale).unwrap();
                }
                sharded = restored;
            }
        }
        Outcome { records, state: state(&sharded) }
    })
}

#[test]
fn every_rank_keeps_the_state_of_the_unsharded_clip() {
    for clip in clips() {
        let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
        let mut expected = Vec::new();
        for step in 0..STEPS {
            let mut elements = gradients(step);
            let mut list: Vec<_> = elements.iter_mut().map(|elements| cpu::Gradient::f32(elements)).collect();
            expected.push(plan.clip(&mut list).unwrap());
        }
        for size in [1, 2, 3] {
            let outcomes = run(clip, size);
            assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{clip:?}");
            for (step, (records, expected)) in outcomes[0].records.iter().zip(&expected).enumerate() {
                for (record, expected) in records.iter().zip(expected) {
                    let what = format!("{clip:?}, step {step} on {size} ranks: {record:?}, not {expected:?}");
                    if size == 1 {
                        assert!(
                            record == expected
                                || (record.total_norm.is_nan() && expected.total_norm.is_nan()),
                            "{what}"
                        );
                    }
                    assert_eq!(
                        (record.skip(), record.clipped()),
                        (expected.skip(), expected.clipped()),
                        "{what}"
                    );
                    assert!(
                        record.factor == expected.factor
                            || (record.factor / expected.factor - 1.0).abs() < 1e-5,
                        "{what}"
                    );
                }
            }
        }
    }
}

/// A plan on the GPU and its sharded twin of one rank return the same records.
#[test]
fn one_rank_on_a_gpu_is_the_plain_plan() {
    for clip in clips() {
        let (own, shared) = (gpu().writable(48 + 32), gpu().writable(48 + 32));
        let list = |buffer| {
            [
                Gradient::new(buffer, DType::F32).elements(0..12),
                Gradient::new(buffer, DType::F32).elements(12..20),
            ]
        };
        let plain = gpu().clipper.prepare(&list(&own), clip).unwrap();
        let mut sharded = ShardedClip::new(&[clip]).unwrap();
        let plan = sharded.prepare(&gpu().clipper, &list(&shared)).unwrap();
        for step in 0..STEPS {
            let elements = gradients(step).concat();
            for buffer in [&own, &shared] {
                gpu().queue.write_buffer(buffer, 0, bytemuck::cast_slice(&elements));
            }
            let expected = gpu().records(&plain);
            let records =
                pollster::block_on(sharded.clip_async(&plan, &gpu().queue, &mut SingleProcess)).unwrap();
            let bits = |records: &[ClipRecord]| bytemuck::cast_slice::<_, u32>(records).to_vec();
            assert_eq!(
                bits(&records),
                bits(&expected),
                "{clip:?}, step {step}: {records:?}, not {expected:?}"
            );
        }
    }
}
