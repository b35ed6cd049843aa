//! Edge cases, at some of which an earlier version was wrong.

use std::panic::{AssertUnwindSafe, catch_unwind};

use gradclip::distributed::{AllReduce as _, JoinError, Shard, ShardedClip, Share, SingleProcess};
use gradclip::loss_scale::LossScale;
use gradclip::stats::StepCounts;
use gradclip::{Clip, ClipRecord, DType, Error, Gradient, NonFinite, NormType, bytemuck, cpu, wgpu};
use half::f16;

use super::ranks::ranks;
use crate::common::gpu::{Gpu, adapters, least_limits};
use crate::common::numbers::noise;
use crate::{gpu, gpu_with};

const CLIP: Clip = Clip::by_global_norm(1.0);

fn bits(records: &[ClipRecord]) -> Vec<u32> {
    bytemuck::cast_slice(records).to_vec()
}

fn on_cpu(clip: Clip, parts: &[&[f32]]) -> ClipRecord {
    let mut sharded = ShardedClip::new(&[clip]).unwrap();
    let shares: Vec<_> =
        parts.iter().map(|part| sharded.measure_on_cpu(&[cpu::Gradient::f32(&mut part.to_vec())])).collect();
    sharded.join(shares, &mut SingleProcess).unwrap()[0]
}

fn on_gpu(clip: Clip, parts: &[&[f32]]) -> ClipRecord {
    let mut sharded = ShardedClip::new(&[clip]).unwrap();
    let shares: Vec<_> = parts
        .iter()
        .map(|part| {
            let buffer = gpu().buffer(part);
            let plan = sharded.prepare(&gpu().clipper, &[Gradient::f32(&buffer)]).unwrap();
            plan.measure(&gpu().queue).wait()
        })
        .collect();
    sharded.join(shares, &mut SingleProcess).unwrap()[0]
}

fn plain_cpu(clip: Clip, all: &[f32]) -> ClipRecord {
    cpu::clip(&mut [cpu::Gradient::f32(&mut all.to_vec())], clip).unwrap()[0]
}

fn plain_gpu(clip: Clip, all: &[f32]) -> ClipRecord {
    let buffer = gpu().buffer(all);
    gpu().record(&gpu().clipper.prepare(&[Gradient::f32(&buffer)], clip).unwrap())
}

/// A zero gradient makes a norm of negative p 0.
#[test]
fn negative_p_with_a_zero() {
    let mut faults = Vec::new();
    for p in [-1.0, -3.0, -0.5, f32::NEG_INFINITY] {
        let clip = CLIP.norm_type(NormType::P(p));
        for parts in [&[&[0.0, 2.0][..]][..], &[&[0.0, 2.0], &[1.0]], &[&[0.0], &[0.0]]] {
            for (name, record, expected) in [
                ("CPU", on_cpu(clip, parts), plain_cpu(clip, &parts.concat())),
                ("GPU", on_gpu(clip, parts), plain_gpu(clip, &parts.concat())),
            ] {
                if bits(&[record]) != bits(&[expected]) {
                    faults.push(format!("{name} p={p} {parts:?}: {record:?} not {expected:?}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Finite gradients are never non-finite.
#[test]
fn small_p_is_finite() {
    let mut faults = Vec::new();
    for p in [0.01, 0.001, 1e-30, -0.01, -0.001, 1e30, -1e30, 6.0, 5.9, 1.0001] {
        let clip = CLIP.norm_type(NormType::P(p)).non_finite(NonFinite::Skip);
        for element in [1.0_f32, 3e38, 1e-45] {
            let part = vec![element; 1000];
            for parts in [&[&part[..]][..], &[&part, &part], &[&part[..1], &part[..1]]] {
                for (name, record, expected) in [
                    ("CPU", on_cpu(clip, parts), plain_cpu(clip, &parts.concat())),
                    ("GPU", on_gpu(clip, parts), plain_gpu(clip, &parts.concat())),
                ] {
                    // A power near the end of the range of f64 magnifies the rounding of its base.
                    let is_near = |a: f32, b: f32| a == b || (a / b - 1.0).abs() < 1e-4;
                    // The host computes in f64, whose range a norm of a small p may leave.
                    let is_in_range = expected.norm_exponent.abs() < 1022;
                    if record.non_finite()
                        || !is_near(record.factor, expected.factor)
                        || !is_near(record.total_norm, expected.total_norm)
                        || (parts.len() == 1 && is_in_range && bits(&[record]) != bits(&[expected]))
                    {
                        faults.push(format!(
                            "{name} p={p} {element:e} x{} in {}: {record:?} not {expected:?}",
                            parts[0].len(),
                            parts.len()
                        ));
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Non-finite elements under p <= 0.
#[test]
fn non_finite_with_negative_p() {
    let mut faults = Vec::new();
    for p in [-1.0, f32::NEG_INFINITY, 0.5, 7.0] {
        for policy in [NonFinite::Propagate, NonFinite::Skip] {
            let clip = CLIP.norm_type(NormType::P(p)).non_finite(policy);
            for bad in [f32::NAN, f32::INFINITY] {
                for parts in
                    [&[&[bad, 2.0][..]][..], &[&[bad, 2.0], &[1.0]], &[&[bad], &[3.0]], &[&[bad], &[bad]]]
                {
                    for (name, record, expected) in [
                        ("CPU", on_cpu(clip, parts), plain_cpu(clip, &parts.concat())),
                        ("GPU", on_gpu(clip, parts), plain_gpu(clip, &parts.concat())),
                    ] {
                        let norms = [record.total_norm, expected.total_norm];
                        let is_near = norms.map(f32::to_bits)[0] == norms.map(f32::to_bits)[1]
                            || norms[0].is_nan() && norms[1].is_nan()
                            || (norms[0] / norms[1] - 1.0).abs() < 1e-6;
                        let decisions = |record: &ClipRecord| {
                            (record.non_finite(), record.skip(), record.clipped(), record.first_non_finite())
                        };
                        if !is_near || decisions(&record) != decisions(&expected) {
                            faults.push(format!("{name} p={p} {parts:?}: {record:?} not {expected:?}"));
                        }
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The number of shards in the error of a tile.
#[test]
fn tile_count_of_four_ranks() {
    let errors = ranks(4, 0, |rank| {
        let buffer = gpu().buffer(&[2.0; 4096]);
        let mut clip = ShardedClip::new(&[CLIP]).unwrap().reproducible(&[4096]).unwrap();
        let plan = clip.prepare(&gpu().clipper, &[Gradient::f32(&buffer)]).unwrap();
        clip.clip(&plan, &gpu().queue, rank).unwrap_err()
    });
    assert_eq!(errors[0], JoinError::Clip(Error::TileCount { whole: 0, element: 0, shards: 4 }));
}

fn no_panic<T>(what: &str, run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| format!("{what}: panicked"))
}

/// Shares of another clip are errors, not panics.
#[test]
fn share_with_more_groups_global() {
    let a = ShardedClip::new(&[CLIP; 2]).unwrap();
    let share = a.measure_on_cpu(&[cpu::Gradient::f32(&mut [1.0]).group(1)]);
    let mut b = ShardedClip::new(&[CLIP]).unwrap();
    let result = no_panic("groups", || b.join([share], &mut SingleProcess)).unwrap();
    assert!(result.is_err(), "{result:?}");
}

#[test]
fn share_with_more_groups_by_norm() {
    let a = ShardedClip::new(&[Clip::by_norm(1.0); 3]).unwrap();
    let share = a.measure_on_cpu(&[cpu::Gradient::f32(&mut [1.0]).group(2)]);
    let mut b = ShardedClip::new(&[Clip::by_norm(1.0)]).unwrap();
    let result = no_panic("groups", || b.join([share], &mut SingleProcess)).unwrap();
    assert!(result.is_err(), "{result:?}");
}

#[test]
fn share_with_more_tiles() {
    let a = ShardedClip::new(&[CLIP]).unwrap().reproducible(&[10_000]).unwrap();
    let buffer = gpu().buffer(&vec![1.0; 10_000]);
    let plan = a.prepare(&gpu().clipper, &[Gradient::f32(&buffer)]).unwrap();
    let share = plan.measure(&gpu().queue).wait();
    let mut b = ShardedClip::new(&[CLIP]).unwrap().reproducible(&[5000]).unwrap();
    let result = no_panic("tiles", || b.join([share], &mut SingleProcess)).unwrap();
    assert!(result.is_err(), "{result:?}");
}

#[test]
fn share_with_other_norm() {
    let a = ShardedClip::new(&[CLIP.norm_type(NormType::L1)]).unwrap();
    let share = a.measure_on_cpu(&[cpu::Gradient::f32(&mut [3.0, 4.0])]);
    let mut b = ShardedClip::new(&[CLIP]).unwrap();
    let result = b.join([share], &mut SingleProcess);
    assert!(result.is_err(), "{result:?}");
}

/// The ranks compare their options once, so a clip cannot become reproducible later.
#[test]
fn reproducible_after_a_join() {
    let results = ranks(2, 0, |rank| {
        let mut clip = ShardedClip::new(&[CLIP]).unwrap();
        clip.join([Ok(Share::default())], rank).unwrap();
        let buffer = gpu().buffer(&[1.0; 64]);
        let plan = clip.prepare(&gpu().clipper, &[Gradient::f32(&buffer)]).unwrap();
        clip.clip(&plan, &gpu().queue, rank).unwrap();
        clip.reproducible(&[64]).unwrap_err().to_string()
    });
    let message = "a sharded clip cannot have a reproducible norm after the first step: the ranks have compared their options";
    assert_eq!(results, [message; 2]);
}

/// Groups that differ between plans of one process, or at a later step.
#[test]
fn groups_differ_in_a_process() {
    let mut clip = ShardedClip::new(&[Clip::by_norm(1.0), Clip::by_norm(100.0)]).unwrap();
    let share = |groups: [usize; 2]| {
        clip.measure_on_cpu(&[
            cpu::Gradient::f32(&mut [30.0]).group(groups[0]),
            cpu::Gradient::f32(&mut [40.0]).group(groups[1]),
        ])
    };
    let shares = [share([0, 1]), share([1, 0])];
    let result = clip.join(shares, &mut SingleProcess);
    assert!(result.is_err(), "{result:?}");
}

#[test]
fn groups_differ_at_a_later_step() {
    let results = ranks(2, 0, |rank| {
        let mut clip = ShardedClip::new(&[Clip::by_norm(1.0), Clip::by_norm(100.0)]).unwrap();
        let share =
            |clip: &ShardedClip, group| clip.measure_on_cpu(&[cpu::Gradient::f32(&mut [30.0]).group(group)]);
        let first = share(&clip, 0);
        clip.join([first], rank).unwrap();
        let second = share(&clip, rank.rank());
        clip.join([second], rank)
    });
    assert!(results.iter().all(Result::is_err), "{results:?}");
}

/// A queue of another device is an error of the ticket.
#[test]
fn foreign_queue() {
    let other = gpu_with(|_| {});
    let buffer = gpu().buffer(&[1.0; 64]);
    let mut clip = ShardedClip::new(&[CLIP]).unwrap();
    let plan = clip.prepare(&gpu().clipper, &[Gradient::f32(&buffer)]).unwrap();
    let result = no_panic("queue", || clip.clip(&plan, &other.queue, &mut SingleProcess)).unwrap();
    assert!(result.is_err(), "{result:?}");
}

fn rebind(from_arena: bool, own: &Gpu) {
    let len = 3 * 4096_u64;
    let count = 12_u64;
    let elements: Vec<f32> = noise(7, usize::try_from(len * count).unwrap());
    let arena = own.buffer(&elements);
    let buffers: Vec<_> =
        elements.chunks(usize::try_from(len).unwrap()).map(|part| own.buffer(part)).collect();
    let in_arena: Vec<_> =
        (0..count).map(|at| Gradient::new(&arena, DType::F32).elements(at * len..(at + 1) * len)).collect();
    let apart: Vec<_> = buffers.iter().map(Gradient::f32).collect();
    let expected = own.record(&own.clipper.prepare(&in_arena, Clip::by_global_norm(1e9)).unwrap());
    let mut clip = ShardedClip::new(&[Clip::by_global_norm(1e9)]).unwrap().reproducible(&[len; 12]).unwrap();
    let (first, second) = if from_arena { (&in_arena, &apart) } else { (&apart, &in_arena) };
    let mut plan = clip.prepare(&own.clipper, first).unwrap();
    let record = clip.clip(&plan, &own.queue, &mut SingleProcess).unwrap()[0];
    assert_eq!(bits(&[record]), bits(&[expected]), "before rebind");
    plan.rebind(second).unwrap();
    let record = clip.clip(&plan, &own.queue, &mut SingleProcess).unwrap()[0];
    assert_eq!(bits(&[record]), bits(&[expected]), "{record:?} not {expected:?}");
}

/// A reproducible plan that is rebound.
#[test]
fn rebind_from_arena() {
    rebind(true, gpu());
}

#[test]
fn rebind_to_arena() {
    rebind(false, gpu());
}

#[test]
fn rebind_with_few_slots() {
    rebind(true, &Gpu::open(&adapters()[0], least_limits()));
}

/// First steps without gradients.
#[test]
fn empty_first_steps() {
    for clip in [Clip::by_norm(1.0).tensor_stats(), CLIP.tensor_stats(), Clip::by_rms(1.0)] {
        let results = ranks(2, 0, |rank| {
            let mut sharded = ShardedClip::new(&[clip]).unwrap();
            let plan = sharded.prepare(&gpu().clipper, &[]).unwrap();
            let mut records = Vec::new();
            if clip != CLIP.tensor_stats() {
                records.push(sharded.clip(&plan, &gpu().queue, rank).unwrap());
            }
            records.push(sharded.join([], rank).unwrap());
            let share = sharded
                .measure_on_cpu(&[cpu::Gradient::f32(&mut [3.0]), cpu::Gradient::f32(&mut [4.0])])
                .unwrap();
            records.push(sharded.join((rank.rank() == 0).then_some(Ok(share)), rank).unwrap());
            records.push(sharded.join([], rank).unwrap());
            (records, sharded.step_counts().to_vec(), sharded.tensor_stats().len())
        });
        assert_eq!(results[0], results[1]);
    }
}

/// A restored clip by norm, and a step without gradients on all ranks.
#[test]
fn restored_then_empty() {
    let mut sharded = ShardedClip::new(&[Clip::by_norm(1.0).count_steps()]).unwrap();
    sharded.set_step_counts(&[StepCounts { steps: 3, ..StepCounts::default() }; 2]).unwrap();
    let result = sharded.join([], &mut SingleProcess);
    assert!(result.is_ok(), "{result:?}");
}

/// Statistics of replicas.
#[test]
fn stats_of_replicas() {
    for clip in [CLIP.tensor_stats(), Clip::by_norm(1.0).tensor_stats()] {
        for is_cpu in [true, false] {
            let stats = ranks(2, 0, |rank| {
                let elements = [0.0, 0.0, 3.0, f32::INFINITY];
                let mut sharded = ShardedClip::new(&[clip.non_finite(NonFinite::Skip)]).unwrap();
                let is_first = rank.rank() == 0;
                let share = if is_cpu {
                    let mut elements = elements;
                    let gradient = cpu::Gradient::f32(&mut elements);
                    sharded.measure_on_cpu(&[if is_first { gradient } else { gradient.unmeasured() }])
                } else {
                    let buffer = gpu().buffer(&elements);
                    let gradient = Gradient::f32(&buffer);
                    let gradient = if is_first { gradient } else { gradient.unmeasured() };
                    let plan = sharded.prepare(&gpu().clipper, &[gradient]).unwrap();
                    plan.measure(&gpu().queue).wait()
                };
                sharded.join([share], rank).unwrap();
                sharded.tensor_stats().to_vec()
            });
            assert_eq!((stats[1][0].zeros, stats[1][0].non_finite), (2, 1), "CPU {is_cpu} {clip:?}");
        }
    }
}

/// F16 gradients whose products overflow.
#[test]
fn f16() {
    let elements: Vec<f16> = (0..5000).map(|at| f16::from_f32(65504.0 - at as f32 * 13.0)).collect();
    for scale in [0.01, 3.0, 1024.0] {
        for clip in [
            Clip::by_global_norm(f32::INFINITY).loss_scale(scale).non_finite(NonFinite::Skip),
            Clip::by_global_norm(5.0).loss_scale(scale).norm_type(NormType::P(3.0)),
            Clip::by_rms(5.0).loss_scale(scale).tensor_stats(),
        ] {
            let (own, shared) = (gpu().buffer_of(&elements), gpu().buffer_of(&elements));
            let expected = gpu().records(&gpu().clipper.prepare(&[Gradient::f16(&own)], clip).unwrap());
            let mut sharded = ShardedClip::new(&[clip]).unwrap();
            let plan = sharded.prepare(&gpu().clipper, &[Gradient::f16(&shared)]).unwrap();
            let records = sharded.clip(&plan, &gpu().queue, &mut SingleProcess).unwrap();
            assert_eq!(bits(&records), bits(&expected), "{clip:?}: {records:?} not {expected:?}");
            assert_eq!(gpu().read::<u16>(&own), gpu().read::<u16>(&shared), "{clip:?}");
        }
    }
}

fn shards_of<'a>(
    cuts: &[(usize, u64, u64)],
    buffers: &'a [wgpu::Buffer],
    modify: impl Fn(Gradient<'a>) -> Gradient<'a>,
) -> Vec<Shard<'a>> {
    cuts.iter()
        .map(|&(whole, from, to)| {
            Shard::new(modify(Gradient::new(&buffers[whole], DType::F32).elements(from..to)), whole, from)
        })
        .collect()
}

/// Long tiles, shards of one gradient out of order, gradients without elements.
#[test]
fn long_tiles_out_of_order() {
    let whole = [noise(1, 8_400_000), vec![1.0; 4], noise(2, 40_000)];
    let lens = [8_400_000, 0, 40_000, 0];
    let places = [0, 0, 2, 0];
    let buffers: Vec<_> = places
        .iter()
        .map(|&at: &usize| gpu().buffer(&whole[at][..if at == 0 { 8_400_000 } else { whole[at].len() }]))
        .collect();
    let list: Vec<_> = buffers
        .iter()
        .zip(lens)
        .map(|(buffer, len)| Gradient::new(buffer, DType::F32).elements(0..len))
        .collect();
    for clip in [Clip::by_global_norm(1e9), Clip::by_global_norm(1e9).norm_type(NormType::L1).tensor_stats()]
    {
        let expected = gpu().record(&gpu().clipper.prepare(&list, clip).unwrap());
        let mut sharded = ShardedClip::new(&[clip]).unwrap().reproducible(&lens).unwrap();
        let tile = sharded.tile_elements().unwrap();
        assert_eq!(tile, 16384);
        let cuts = [
            vec![(2, tile, 40_000), (0, 5 * tile, 8_400_000), (0, tile, 2 * tile), (1, 0, 0)],
            vec![(0, 2 * tile, 5 * tile), (2, 0, tile), (3, 0, 0), (0, 0, tile), (2, 40_000, 40_000)],
        ];
        let plans: Vec<_> = cuts
            .iter()
            .map(|cuts| sharded.prepare_shards(&gpu().clipper, &shards_of(cuts, &buffers, |g| g)).unwrap())
            .collect();
        let shares: Vec<_> = plans.iter().map(|plan| plan.measure(&gpu().queue).wait()).collect();
        let record = sharded.join(shares, &mut SingleProcess).unwrap()[0];
        assert_eq!(bits(&[record]), bits(&[expected]), "{record:?} not {expected:?}");
    }
}

/// Rows and columns do not matter to a reproducible global norm; small windows do not either.
#[test]
fn rows_columns_and_windows() {
    let elements: Vec<f32> = noise(9, 3 * 5000);
    let clip = Clip::by_global_norm(1e9);
    let plain = gpu().buffer(&elements);
    let expected = gpu().record(&gpu().clipper.prepare(&[Gradient::f32(&plain)], clip).unwrap());
    for (name, modify) in [
        ("rows", (|g: Gradient<'static>| g.rows(3)) as fn(Gradient<'static>) -> Gradient<'static>),
        ("columns", |g| g.columns(3)),
        ("plain", |g| g),
    ] {
        for own in [gpu_with(|_| {}), Gpu::open(&adapters()[0], least_limits())] {
            let buffer: &'static wgpu::Buffer = Box::leak(Box::new(own.buffer(&elements)));
            let mut sharded = ShardedClip::new(&[clip]).unwrap().reproducible(&[15_000]).unwrap();
            let plan = sharded.prepare(&own.clipper, &[modify(Gradient::f32(buffer))]).unwrap();
            let record = sharded.clip(&plan, &own.queue, &mut SingleProcess).unwrap()[0];
            assert_eq!(bits(&[record]), bits(&[expected]), "{name}: {record:?} not {expected:?}");
        }
    }
}

/// Many windows at odd offsets.
#[test]
fn many_windows() {
    let elements: Vec<f32> = noise(11, 700_000);
    let clip = Clip::by_global_norm(1e9);
    let list = |buffer| {
        [(3, 300_003), (300_003, 300_010), (300_011, 700_000)]
            .map(|(from, to)| Gradient::new(buffer, DType::F32).elements(from..to))
    };
    let plain = gpu().buffer(&elements);
    let expected = gpu().record(&gpu().clipper.prepare(&list(&plain), clip).unwrap());
    let own = Gpu::open(&adapters()[0], least_limits());
    let buffer = own.buffer(&elements);
    let mut sharded = ShardedClip::new(&[clip]).unwrap().reproducible(&[300_000, 7, 399_989]).unwrap();
    let plan = sharded.prepare(&own.clipper, &list(&buffer)).unwrap();
    let record = sharded.clip(&plan, &own.queue, &mut SingleProcess).unwrap()[0];
    assert_eq!(bits(&[record]), bits(&[expected]), "{record:?} not {expected:?}");
}

/// The loss scale at its floor; limits and scales that change between steps.
#[test]
fn floor_and_changes() {
    let scale = LossScale::new(4.0).unwrap().floor(1.0).unwrap().growth(2.0, 2).unwrap();
    let clip = CLIP.dynamic_loss_scale(scale).non_finite(NonFinite::Skip).count_steps();
    let mut plain = cpu::ClipPlan::new(&[clip; 2]).unwrap();
    let mut sharded = ShardedClip::new(&[clip; 2]).unwrap();
    for step in 0..20 {
        let bad = if step % 7 < 4 { f32::INFINITY } else { 3.0 };
        let mut elements = [[1.0, bad], [2.0, 2.0]];
        let mut gradients: Vec<_> =
            elements.iter_mut().enumerate().map(|(g, e)| cpu::Gradient::f32(e).group(g)).collect();
        if step % 5 == 4 {
            let limits = [step as f32, f32::INFINITY];
            plain.set_max_norms(&limits).unwrap();
            sharded.set_max_norms(&limits).unwrap();
        }
        let share = sharded.measure_on_cpu(&gradients);
        let records = sharded.join([share], &mut SingleProcess).unwrap();
        let expected = plain.clip(&mut gradients).unwrap();
        assert_eq!(format!("{records:?}"), format!("{expected:?}"), "step {step}");
        assert_eq!(sharded.loss_scale(), plain.loss_scale());
        assert_eq!(sharded.step_counts(), plain.step_counts());
    }
    let clip = CLIP.loss_scale(4.0);
    let mut plain = cpu::ClipPlan::new(&[clip]).unwrap();
    let mut sharded = ShardedClip::new(&[clip]).unwrap();
    for scale in [4.0, 3.0, 1e-30, 1e30] {
        plain.set_loss_scale(scale).unwrap();
        sharded.set_loss_scale(scale).unwrap();
        let mut elements = [3.3, 1e30, 1e-40];
        let mut gradients = [cpu::Gradient::f32(&mut elements)];
        let share = sharded.measure_on_cpu(&gradients);
        let records = sharded.join([share], &mut SingleProcess).unwrap();
        assert_eq!(records, plain.clip(&mut gradients).unwrap(), "{scale}");
    }
}

/// Lengths that overflow.
#[test]
fn huge_lengths() {
    for lens in [vec![u64::MAX, 1], vec![u64::MAX; 3]] {
        no_panic("lengths", || ShardedClip::new(&[CLIP]).unwrap().reproducible(&lens).is_ok()).unwrap();
    }
}

/// One share is the plain GPU plan, bit for bit, for random numbers, every p and odd loss scales.
#[test]
fn one_share_is_plain() {
    let mut faults = Vec::new();
    for p in [1.0, 1.5, 2.0, 3.0, 5.7, 0.7, 9.0, -2.0] {
        for seed in 0..40 {
            let elements: Vec<f32> = noise(100 + seed, 37 + usize::try_from(seed).unwrap());
            let clip = CLIP.norm_type(NormType::P(p)).loss_scale(1.7 + seed as f32);
            let (record, expected) = (on_gpu(clip, &[&elements]), plain_gpu(clip, &elements));
            if bits(&[record]) != bits(&[expected]) {
                faults.push(format!("p={p} seed {seed}: {record:?} not {expected:?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{} {}", faults.len(), faults.join("\n"));
}

/// Records of a group with an error under `NonFinite::Error`, and state after it.
#[test]
fn error_in_one_group() {
    let results = ranks(2, 0, |rank| {
        let mut clip = ShardedClip::new(&[CLIP.non_finite(NonFinite::Error).count_steps(); 2]).unwrap();
        let bad = if rank.rank() == 1 { f32::NAN } else { 1.0 };
        let share =
            clip.measure_on_cpu(&[cpu::Gradient::f32(&mut [3.0]), cpu::Gradient::f32(&mut [bad]).group(1)]);
        let error = clip.join([share], rank).unwrap_err();
        let share = clip.measure_on_cpu(&[cpu::Gradient::f32(&mut [3.0])]);
        let next = clip.join([share], rank).unwrap();
        (error, next, clip.step_counts().to_vec())
    });
    // As text: NaN differs from itself.
    assert_eq!(format!("{:?}", results[0]), format!("{:?}", results[1]));
}

/// The shares of a rebound plan and of a new one are equal.
#[test]
fn shares_after_rebind() {
    for own in [gpu_with(|_| {}), Gpu::open(&adapters()[0], least_limits())] {
        let len = 3 * 4096_u64;
        let count = 30_u64;
        let elements: Vec<f32> = noise(7, usize::try_from(len * count).unwrap())
            .iter()
            .enumerate()
            .map(|(at, g)| g * at as f32)
            .collect();
        let arena = own.buffer(&elements);
        let buffers: Vec<_> =
            elements.chunks(usize::try_from(len).unwrap()).map(|part| own.buffer(part)).collect();
        let in_arena: Vec<_> = (0..count)
            .map(|at| Gradient::new(&arena, DType::F32).elements(at * len..(at + 1) * len))
            .collect();
        let apart: Vec<_> = buffers.iter().map(Gradient::f32).collect();
        let clip = ShardedClip::new(&[CLIP]).unwrap().reproducible(&vec![len; 30]).unwrap();
        for (name, first, second) in [("to apart", &in_arena, &apart), ("to arena", &apart, &in_arena)] {
            let mut plan = clip.prepare(&own.clipper, first).unwrap();
            let expected = plan.measure(&own.queue).wait().unwrap();
            plan.rebind(second).unwrap();
            let share = no_panic(name, || plan.measure(&own.queue).wait());
            assert!(share == Ok(Ok(expected)), "{name}");
        }
    }
}

/// A gradient buffer that was destroyed.
#[test]
fn destroyed_buffer() {
    let own = gpu_with(|_| {});
    let buffer = own.buffer(&[1.0; 64]);
    let mut clip = ShardedClip::new(&[CLIP]).unwrap();
    let plan = clip.prepare(&own.clipper, &[Gradient::f32(&buffer)]).unwrap();
    buffer.destroy();
    let result = no_panic("destroyed", || clip.clip(&plan, &own.queue, &mut SingleProcess)).unwrap();
    assert!(result.is_err(), "{result:?}");
}

/// After a disagreement about restored state, all ranks restore the same and go on.
#[test]
fn disagreement_about_state_ends() {
    let results = ranks(2, 0, |rank| {
        let mut clip = ShardedClip::new(&[CLIP.count_steps()]).unwrap();
        let counts = |steps| [StepCounts { steps, ..StepCounts::default() }];
        if rank.rank() == 1 {
            clip.set_step_counts(&counts(9)).unwrap();
        }
        let first = clip.join([], rank).is_err();
        clip.set_step_counts(&counts(3)).unwrap();
        (first, clip.join([], rank).map_err(|error| error.to_string()))
    });
    assert!(results[0].0 && results[1].0);
    assert!(results.iter().all(|(_, second)| second.is_ok()), "{results:?}");
}

/// The order of restoring does not matter.
#[test]
fn order_of_restoring() {
    use gradclip::stats::NormHistory;
    let results = ranks(2, 0, |rank| {
        let mut clip = ShardedClip::new(&[CLIP.z_clip(gradclip::ZClip::default())]).unwrap();
        let history = [NormHistory { steps: 3, mean: 1.0, deviation: 0.5 }];
        let counts = [StepCounts { steps: 3, ..StepCounts::default() }];
        if rank.rank() == 1 {
            clip.set_step_counts(&counts).unwrap();
            clip.set_histories(&history).unwrap();
        } else {
            clip.set_histories(&history).unwrap();
            clip.set_step_counts(&counts).unwrap();
        }
        clip.join([], rank).map_err(|error| error.to_string())
    });
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// Statistics of a tensor with a zero under a negative p, and beyond f32 under L2.
#[test]
fn stats_negative_p() {
    let mut clip = ShardedClip::new(&[CLIP.tensor_stats().norm_type(NormType::P(-1.0))]).unwrap();
    let share = clip.measure_on_cpu(&[cpu::Gradient::f32(&mut [0.0, 1.0]), cpu::Gradient::f32(&mut [2.0])]);
    clip.join([share], &mut SingleProcess).unwrap();
    assert_eq!(clip.tensor_stats()[0].norm, 0.0);
}

/// What a rebound reproducible plan returns.
#[test]
fn results_after_rebind() {
    let mut faults = Vec::new();
    for (limits, own) in [("default", gpu_with(|_| {})), ("least", Gpu::open(&adapters()[0], least_limits()))]
    {
        for count in [12_u64, 30, 100] {
            let len = 3 * 4096_u64;
            let mut elements: Vec<f32> = noise(7, usize::try_from(len * count).unwrap());
            elements.iter_mut().enumerate().for_each(|(at, g)| *g *= (at as f32).sin() * 1e3);
            for bad in [None, Some(7)] {
                if let Some(bad) = bad {
                    elements[bad * 12288 + 5] = f32::NAN;
                }
                let arena = own.buffer(&elements);
                let buffers: Vec<_> =
                    elements.chunks(usize::try_from(len).unwrap()).map(|part| own.buffer(part)).collect();
                let in_arena: Vec<_> = (0..count)
                    .map(|at| Gradient::new(&arena, DType::F32).elements(at * len..(at + 1) * len))
                    .collect();
                let apart: Vec<_> = buffers.iter().map(Gradient::f32).collect();
                let lens = vec![len; usize::try_from(count).unwrap()];
                for (name, first, second) in
                    [("to apart", &in_arena, &apart), ("to arena", &apart, &in_arena)]
                {
                    let new = || {
                        ShardedClip::new(&[CLIP.non_finite(NonFinite::Skip)])
                            .unwrap()
                            .reproducible(&lens)
                            .unwrap()
                    };
                    let mut fresh = new();
                    let plan = fresh.prepare(&own.clipper, second).unwrap();
                    let share = plan.measure(&own.queue).wait();
                    let expected = fresh.join([share], &mut SingleProcess).unwrap()[0];
                    let mut clip = new();
                    let mut plan = clip.prepare(&own.clipper, first).unwrap();
                    plan.rebind(second).unwrap();
                    let what = format!("{limits} {count} {name} bad {bad:?}");
                    match no_panic(&what, || plan.measure(&own.queue).wait()) {
                        Err(panic) => faults.push(panic),
                        Ok(share) => {
                            let record = clip.join([share], &mut SingleProcess).unwrap()[0];
                            if bits(&[record]) != bits(&[expected]) {
                                faults.push(format!(
                                    "{what}: norm {:e} not {:e}, first {:?} not {:?}",
                                    record.total_norm,
                                    expected.total_norm,
                                    record.first_non_finite(),
                                    expected.first_non_finite()
                                ));
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The bits after a rebind.
#[test]
fn bits_after_rebind() {
    let mut faults = Vec::new();
    let own = gpu_with(|_| {});
    for seed in 0..12 {
        let (len, count) = (3 * 4096_u64, 60_u64);
        let elements: Vec<f32> = noise(seed, usize::try_from(len * count).unwrap());
        let arena = own.buffer(&elements);
        let buffers: Vec<_> =
            elements.chunks(usize::try_from(len).unwrap()).map(|part| own.buffer(part)).collect();
        let in_arena: Vec<_> = (0..count)
            .map(|at| Gradient::new(&arena, DType::F32).elements(at * len..(at + 1) * len))
            .collect();
        let apart: Vec<_> = buffers.iter().map(Gradient::f32).collect();
        let clip = Clip::by_global_norm(f32::INFINITY).norm_type(NormType::L1);
        let expected = own.record(&own.clipper.prepare(&in_arena, clip).unwrap());
        let mut sharded = ShardedClip::new(&[clip]).unwrap().reproducible(&vec![len; 60]).unwrap();
        let mut plan = sharded.prepare(&own.clipper, &in_arena).unwrap();
        plan.rebind(&apart).unwrap();
        let record = sharded.clip(&plan, &own.queue, &mut SingleProcess).unwrap()[0];
        if bits(&[record]) != bits(&[expected]) {
            faults.push(format!("seed {seed}: {:e} not {:e}", record.total_norm, expected.total_norm));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// A norm of p in (0, 1) that a trainer may use, on many ranks.
#[test]
fn many_ranks_small_p() {
    let part = vec![1.0_f32; 50_000];
    let parts: Vec<&[f32]> = vec![&part[..]; 64];
    let clip = CLIP.norm_type(NormType::P(0.02)).non_finite(NonFinite::Skip);
    let record = on_cpu(clip, &parts);
    assert!(!record.non_finite(), "{record:?}");
}
