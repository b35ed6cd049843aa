//! The joint record is that of all gradients, however they are cut, and the same on all ranks.

use gradclip::distributed::{AllReduce as _, ShardedClip, Share, SingleProcess};
use gradclip::{Clip, ClipRecord, DType, Gradient, NonFinite, NormType, cpu, wgpu};

use super::ranks::{cut, ranks};
use crate::common::numbers::noise;
use crate::{assert_near, gpu};

/// The cuts of a list of gradients for 1, 2 and 4 ranks; the third has a rank without elements and one with few.
const CUTS: [&[f64]; 4] = [&[], &[0.37], &[0.001, 0.001, 0.6], &[0.0, 0.25, 0.5]];

fn norm_types() -> impl Iterator<Item = NormType> {
    let powers = [3.0, 0.5, 8.0, -1.0, f32::NEG_INFINITY].map(NormType::P);
    [NormType::L1, NormType::L2, NormType::Inf].into_iter().chain(powers)
}

fn gradients() -> Vec<Vec<f32>> {
    vec![noise(1, 9000), vec![-9.5; 33], Vec::new(), vec![0.25], noise(2, 777)]
}

fn on_gpu(shard: &[Vec<f32>]) -> Vec<wgpu::Buffer> {
    // A buffer must not be empty; the range of an empty gradient is.
    shard.iter().map(|elements| gpu().buffer(if elements.is_empty() { &[0.0] } else { elements })).collect()
}

fn listed<'a>(shard: &[Vec<f32>], buffers: &'a [wgpu::Buffer]) -> Vec<Gradient<'a>> {
    let gradient = |(elements, buffer): (&Vec<f32>, &'a _)| {
        Gradient::new(buffer, DType::F32).elements(0..elements.len() as u64)
    };
    shard.iter().zip(buffers).map(gradient).collect()
}

/// Clips shards on the GPU, one rank each. Returns the records and the elements of each rank.
fn clip_on_gpu(
    clips: &[Clip],
    shards: &[Vec<Vec<f32>>],
    seed: usize,
) -> Vec<(Vec<ClipRecord>, Vec<Vec<f32>>)> {
    ranks(shards.len(), seed, |rank| {
        let shard = &shards[rank.rank()];
        let buffers = on_gpu(shard);
        let mut clip = ShardedClip::new(clips).unwrap();
        let plan = clip.prepare(&gpu().clipper, &listed(shard, &buffers)).unwrap();
        let records = clip.clip(&plan, &gpu().queue, rank).unwrap();
        let elements = shard.iter().zip(&buffers).map(|(elements, buffer)| {
            let mut all = gpu().read::<f32>(buffer);
            all.truncate(elements.len());
            all
        });
        (records, elements.collect())
    })
}

/// Clips shards on the CPU.
fn clip_on_cpu(
    clips: &[Clip],
    shards: &[Vec<Vec<f32>>],
    seed: usize,
) -> Vec<(Vec<ClipRecord>, Vec<Vec<f32>>)> {
    ranks(shards.len(), seed, |rank| {
        let mut shard = shards[rank.rank()].clone();
        let mut clip = ShardedClip::new(clips).unwrap();
        let records = {
            let mut gradients: Vec<_> =
                shard.iter_mut().map(|elements| cpu::Gradient::f32(elements)).collect();
            let share = clip.measure_on_cpu(&gradients);
            let records = clip.join([share], rank).unwrap();
            clip.scale_on_cpu(&mut gradients, &records).unwrap();
            records
        };
        (records, shard)
    })
}

#[test]
fn the_joint_clip_is_that_of_all_gradients() {
    let whole = gradients();
    for norm_type in norm_types() {
        let clip = Clip::by_global_norm(0.5).norm_type(norm_type);
        let buffers = on_gpu(&whole);
        let plain = gpu().record(&gpu().clipper.prepare(&listed(&whole, &buffers), clip).unwrap());
        let mut on_cpu = whole.clone();
        let mut list: Vec<_> = on_cpu.iter_mut().map(|elements| cpu::Gradient::f32(elements)).collect();
        let plain_on_cpu = cpu::clip(&mut list, clip).unwrap()[0];
        for (seed, cuts) in CUTS.iter().enumerate() {
            let shards = cut(&whole, cuts);
            for (name, expected, all) in [
                ("GPU", plain, clip_on_gpu(&[clip], &shards, seed)),
                ("CPU", plain_on_cpu, clip_on_cpu(&[clip], &shards, seed)),
            ] {
                let what = format!("{norm_type:?} on {} ranks, {name}", shards.len());
                let record = all[0].0[0];
                assert!(all.iter().all(|(records, _)| *records == [record]), "{what}: {all:?}");
                if shards.len() == 1 {
                    assert_eq!(record, expected, "{what}");
                }
                let error = f64::from(record.total_norm) / f64::from(expected.total_norm) - 1.0;
                assert!(error.abs() < 3e-6, "{what}: {record:?}, not {expected:?}");
                assert_eq!(record.max_magnitude, expected.max_magnitude, "{what}");
                for (shard, (_, clipped)) in shards.iter().zip(&all) {
                    let by_hand: Vec<Vec<f32>> = shard
                        .iter()
                        .map(|elements| elements.iter().map(|g| g * record.factor).collect())
                        .collect();
                    assert_eq!(*clipped, by_hand, "{what}");
                }
            }
        }
    }
}

#[test]
fn there_may_be_more_ranks_than_elements_and_ranks_without_gradients() {
    let clip = [Clip::by_global_norm(1.0)];
    for shards in
        [vec![vec![vec![3.0]], vec![vec![]], vec![], vec![vec![-4.0]], vec![vec![], vec![]]], vec![vec![]; 3]]
    {
        let expected = if shards.len() == 5 { 5.0 } else { 0.0 };
        for all in [clip_on_gpu(&clip, &shards, 1), clip_on_cpu(&clip, &shards, 2)] {
            for (records, _) in &all {
                assert_eq!((records[0].total_norm, records[0].clipped()), (expected, expected > 0.0));
                assert_eq!(*records, all[0].0);
            }
        }
    }
    // A rank may have no plan at all.
    let norms = ranks(3, 0, |rank| {
        let mut sharded = ShardedClip::new(&clip).unwrap();
        let share = sharded.measure_on_cpu(&[cpu::Gradient::f32(&mut [3.0, -4.0])]).unwrap();
        let is_first = rank.rank() == 0;
        sharded.join(is_first.then_some(Ok(share)), rank).unwrap()[0].total_norm
    });
    assert_eq!(norms, [5.0; 3]);
}

/// Norms at the ends of the range of f32, and beyond it.
#[test]
fn no_norm_overflows_or_vanishes() {
    for (magnitudes, len) in [([1e30, 1e-30], 64), ([1e-30; 2], 64), ([3e38, 3e38], 100), ([1e-44, 1e-44], 3)]
    {
        let shards = magnitudes.map(|magnitude: f32| vec![vec![magnitude; len]]);
        let whole: Vec<f64> = shards.iter().flatten().flatten().map(|&g| g.into()).collect();
        for norm_type in norm_types().filter(|norm_type| norm_type.p().abs() >= 1.0) {
            let p = f64::from(norm_type.p());
            let extreme = whole
                .iter()
                .copied()
                .fold(if p > 0.0 { 0.0 } else { f64::INFINITY }, if p > 0.0 { f64::max } else { f64::min });
            let expected = if p.is_infinite() {
                extreme
            } else {
                extreme * whole.iter().map(|g| (g / extreme).powf(p)).sum::<f64>().powf(p.recip())
            };
            let clip = [Clip::by_global_norm(1e-3).norm_type(norm_type)];
            for all in [clip_on_gpu(&clip, &shards, 1), clip_on_cpu(&clip, &shards, 0)] {
                let record = all[0].0[0];
                assert_eq!(all[1].0, [record]);
                let norm = f64::from(record.norm_significand) * 2.0_f64.powi(record.norm_exponent);
                assert!(
                    (norm / expected - 1.0).abs() < 3e-6,
                    "{magnitudes:?}, {norm_type:?}: {record:?}, not {expected:e}"
                );
                assert!(!record.non_finite());
            }
        }
    }
}

#[test]
fn all_ranks_treat_a_non_finite_gradient_alike() {
    for (policy, size) in [NonFinite::Propagate, NonFinite::Skip, NonFinite::Zero, NonFinite::Poison]
        .into_iter()
        .zip([2, 3, 4, 2])
    {
        for norm_type in [NormType::L1, NormType::L2, NormType::Inf, NormType::P(3.0), NormType::P(9.0)] {
            let clip = [Clip::by_global_norm(1.0).norm_type(norm_type).non_finite(policy)];
            for bad in 0..size {
                for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut shards = vec![vec![vec![1.0, 2.0], vec![-3.0]]; size];
                    shards[bad][1][0] = value;
                    let whole: Vec<Vec<f32>> = shards.iter().flatten().cloned().collect();
                    let mut clipped = whole.clone();
                    let mut list: Vec<_> =
                        clipped.iter_mut().map(|elements| cpu::Gradient::f32(elements)).collect();
                    let expected = cpu::clip(&mut list, clip[0]).unwrap()[0];
                    for all in [clip_on_gpu(&clip, &shards, bad), clip_on_cpu(&clip, &shards, bad)] {
                        let what = format!("{value} on rank {bad} of {size}, {policy:?}, {norm_type:?}");
                        let bits = |x: f32| if x.is_nan() { 0 } else { x.to_bits() };
                        for (records, _) in &all {
                            let record = records[0];
                            assert!(record.non_finite(), "{what}");
                            assert_eq!(record.first_non_finite(), Some(1), "{what}");
                            assert_eq!(record.skip(), expected.skip(), "{what}");
                            assert_eq!(
                                [record.total_norm, record.clip_coef, record.factor, record.max_magnitude]
                                    .map(bits),
                                [
                                    expected.total_norm,
                                    expected.clip_coef,
                                    expected.factor,
                                    expected.max_magnitude
                                ]
                                .map(bits),
                                "{what}"
                            );
                        }
                        let elements =
                            all.iter().flat_map(|(_, elements)| elements).flatten().map(|&g| bits(g));
                        assert!(elements.eq(clipped.iter().flatten().map(|&g| bits(g))), "{what}: {all:?}");
                    }
                }
            }
        }
    }
}

/// A tied parameter has a copy of its gradient on each rank.
#[test]
fn a_replica_is_scaled_everywhere_and_counted_once() {
    let (own, replica) = ([3.0_f32], [4.0_f32]);
    let all = ranks(2, 1, |rank| {
        let is_first = rank.rank() == 0;
        let buffers = [gpu().buffer(&own), gpu().buffer(&replica)];
        let tied = Gradient::f32(&buffers[1]);
        let tied = if is_first { tied } else { tied.unmeasured() };
        let own = Gradient::f32(&buffers[0]);
        let mut clip = ShardedClip::new(&[Clip::by_global_norm(1.0)]).unwrap();
        let plan = clip.prepare(&gpu().clipper, &[own, tied]).unwrap();
        let record = clip.clip(&plan, &gpu().queue, rank).unwrap()[0];
        (record, gpu().read::<f32>(&buffers[1])[0])
    });
    let expected = 34.0_f64.sqrt();
    for (record, tied) in all {
        assert_near(record.total_norm, expected);
        assert_near(tied, 4.0 / expected);
    }
}

/// The elements of a replica count once in the root mean square, too.
#[test]
fn a_replica_does_not_change_the_root_mean_square() {
    let records = ranks(3, 0, |rank| {
        let mut tied = [3.0, -4.0];
        let gradient = cpu::Gradient::f32(&mut tied);
        let gradient = if rank.rank() == 1 { gradient } else { gradient.unmeasured() };
        let mut sharded = ShardedClip::new(&[Clip::by_rms(1.0)]).unwrap();
        let share = sharded.measure_on_cpu(&[gradient]);
        sharded.join([share], rank).unwrap()[0]
    });
    for record in records {
        // The limit is the square root of 2 elements.
        assert_near(record.factor, 2.0_f64.sqrt() / 5.0);
    }
}

/// Each gradient has its own norm, although it has shards on several ranks.
#[test]
fn a_sharded_gradient_has_one_norm_and_one_row_of_statistics() {
    let whole = vec![noise(3, 5000), vec![0.0, f32::INFINITY, 2.0, 0.0], noise(4, 10), Vec::new()];
    let clips = [Clip::by_norm(0.1), Clip::by_rms(0.01)]
        .map(|clip| clip.loss_scale(8.0).non_finite(NonFinite::Skip).tensor_stats());
    for clip in clips {
        let buffers = on_gpu(&whole);
        let plan = gpu().clipper.prepare(&listed(&whole, &buffers), clip).unwrap();
        let (expected, stats) = gpu().submit(|encoder| {
            plan.encode(encoder);
            (plan.read_back_all(encoder), plan.read_back_tensor_stats(encoder))
        });
        let (expected, expected_stats) = (expected.wait().unwrap(), stats.wait().unwrap());
        for cuts in CUTS {
            let shards = cut(&whole, cuts);
            let all = ranks(shards.len(), 1, |rank| {
                let shard = &shards[rank.rank()];
                let buffers = on_gpu(shard);
                let mut sharded = ShardedClip::new(&[clip]).unwrap();
                let plan = sharded.prepare(&gpu().clipper, &listed(shard, &buffers)).unwrap();
                let records = sharded.clip(&plan, &gpu().queue, rank).unwrap();
                (records, sharded.tensor_stats().to_vec())
            });
            for (records, stats) in &all {
                assert_eq!((records, stats), (&all[0].0, &all[0].1));
                if shards.len() == 1 {
                    assert_eq!((records, stats), (&expected, &expected_stats));
                }
                for (record, expected) in records.iter().zip(&expected) {
                    assert_eq!(record.skip(), expected.skip());
                    if !expected.non_finite() {
                        assert_near(record.total_norm, expected.total_norm);
                        assert_near(record.factor, expected.factor);
                    }
                }
                for (stats, expected) in stats.iter().zip(&expected_stats) {
                    assert_eq!((stats.zeros, stats.non_finite), (expected.zeros, expected.non_finite));
                    assert_eq!(stats.max_magnitude, expected.max_magnitude);
                    assert!(stats.norm == expected.norm || (stats.norm / expected.norm - 1.0).abs() < 1e-6);
                }
            }
        }
    }
}

#[test]
fn groups_have_norms_of_their_own() {
    let records = ranks(2, 0, |rank| {
        let is_first = rank.rank() == 0;
        let (mut body, mut head) = ([3.0], [if is_first { 5.0 } else { 12.0 }]);
        let mut sharded = ShardedClip::new(&[Clip::by_global_norm(1.0), Clip::by_global_norm(20.0)]).unwrap();
        let mut gradients = vec![cpu::Gradient::f32(&mut head).group(1)];
        if !is_first {
            gradients.push(cpu::Gradient::f32(&mut body));
        }
        let share = sharded.measure_on_cpu(&gradients);
        sharded.join([share], rank).unwrap()
    });
    for records in records {
        assert_eq!([records[0].total_norm, records[1].total_norm], [3.0, 13.0]);
        assert_eq!([records[0].clipped(), records[1].clipped()], [true, false]);
    }
}

/// Several plans of one process need no all-reduce, and several plans of several processes only one.
#[test]
fn plans_of_one_process_join_with_those_of_others() {
    let records = ranks(2, 1, |rank| {
        let mut sharded = ShardedClip::new(&[Clip::by_global_norm(1.0)]).unwrap();
        let shares: Vec<_> = [1.0, 2.0, 2.0]
            .map(|value| sharded.measure_on_cpu(&[cpu::Gradient::f32(&mut [value; 2])]))
            .into();
        let calls = rank.calls;
        let record = sharded.join(shares.clone(), rank).unwrap()[0];
        let first = rank.calls - calls;
        sharded.join(shares, rank).unwrap();
        // A sum and a maximum; at first also the comparison of the options.
        assert_eq!((first, rank.calls - calls - first), (3, 2));
        record
    });
    assert_eq!([records[0].total_norm, records[1].total_norm], [6.0; 2]);
    let mut alone = ShardedClip::new(&[Clip::by_global_norm(1.0)]).unwrap();
    assert_eq!(alone.join([Ok(Share::default())], &mut SingleProcess).unwrap()[0].total_norm, 0.0);
}
