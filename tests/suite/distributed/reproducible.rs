//! A reproducible norm: the same bits for every number of ranks and every cut at borders of tiles, and those of the plain plan.

use gradclip::distributed::{AllReduce as _, JoinError, Shard, ShardedClip, SingleProcess};
use gradclip::{Clip, ClipRecord, DType, Error, Gradient, NonFinite, NormType, bytemuck, cpu, wgpu};
use half::bf16;

use super::ranks::{Rank, ranks};
use crate::common::numbers::noise;
use crate::gpu;

const TILE: u64 = 4096;

fn bits(record: &ClipRecord) -> Vec<u32> {
    bytemuck::cast_slice(std::slice::from_ref(record)).to_vec()
}

/// Returns the record of a plain plan, and the elements after it.
fn plain(clip: Clip, whole: &[Vec<f32>]) -> (ClipRecord, Vec<f32>) {
    let buffers: Vec<_> = whole.iter().map(|elements| gpu().buffer(elements)).collect();
    let gradients: Vec<_> = buffers.iter().map(Gradient::f32).collect();
    let record = gpu().record(&gpu().clipper.prepare(&gradients, clip).unwrap());
    (record, buffers.iter().flat_map(|buffer| gpu().read::<f32>(buffer)).collect())
}

/// The borders of tiles at which gradients may be cut: pairs of a gradient and an element.
fn borders(whole: &[Vec<f32>]) -> Vec<(usize, u64)> {
    let of = |(index, elements): (usize, &Vec<f32>)| {
        (0..(elements.len() as u64).div_ceil(TILE)).map(move |tile| (index, tile * TILE))
    };
    whole.iter().enumerate().flat_map(of).collect()
}

/// Clips the shards of a rank: the tiles from `from` to `to`, numbered over all gradients. Returns the record and the elements.
fn clip_tiles(
    clip: Clip,
    whole: &[Vec<f32>],
    (from, to): (usize, usize),
    rank: &mut Rank<'_>,
) -> (ClipRecord, Vec<f32>) {
    let borders = borders(whole);
    let lens: Vec<u64> = whole.iter().map(|elements| elements.len() as u64).collect();
    // Each tile is a buffer, so that the shards also lie in many buffers and banks; adjacent tiles of a gradient form one shard.
    let mut cuts: Vec<(usize, u64, Vec<f32>)> = Vec::new();
    for &(index, start) in &borders[from..to] {
        let end = (start + TILE).min(lens[index]);
        let elements = &whole[index][usize::try_from(start).unwrap()..usize::try_from(end).unwrap()];
        match cuts.last_mut() {
            Some((last, offset, all))
                if *last == index && *offset + all.len() as u64 == start && all.len() < 20_000 =>
            {
                all.extend(elements);
            }
            _ => cuts.push((index, start, elements.to_vec())),
        }
    }
    let buffers: Vec<_> = cuts.iter().map(|(.., elements)| gpu().buffer(elements)).collect();
    let shards: Vec<_> = cuts
        .iter()
        .zip(&buffers)
        .map(|(&(index, offset, _), buffer)| Shard::new(Gradient::f32(buffer), index, offset))
        .collect();
    let mut sharded = ShardedClip::new(&[clip]).unwrap().reproducible(&lens).unwrap();
    let plan = sharded.prepare_shards(&gpu().clipper, &shards).unwrap();
    let record = sharded.clip(&plan, &gpu().queue, rank).unwrap()[0];
    if !sharded.tensor_stats().is_empty() {
        let zeros = |elements: &Vec<f32>| elements.iter().filter(|g| **g == 0.0).count();
        assert_eq!(sharded.tensor_stats().len(), whole.len());
        for (stats, elements) in sharded.tensor_stats().iter().zip(whole) {
            assert_eq!(stats.zeros as usize, zeros(elements), "statistics are those of whole gradients");
        }
    }
    (record, buffers.iter().flat_map(|buffer| gpu().read::<f32>(buffer)).collect())
}

#[test]
fn every_cut_has_the_bits_of_the_plain_plan() {
    let whole = [noise(1, 30_000), noise(2, 1), vec![0.0; 5000], noise(3, 9000)];
    let wild = |factor: fn(usize) -> f32| {
        whole.clone().map(|elements| elements.iter().enumerate().map(|(at, g)| g * factor(at)).collect())
    };
    let tame: [Vec<f32>; 4] = wild(|_| 1.0);
    // Some tiles are scaled, some are not.
    let scaled = wild(|at| if at < 5000 { 1e25 } else { 1.0 });
    let tiny = wild(|_| 1e-30);
    let huge = wild(|_| 3e38);
    let mut bad = tame.clone();
    bad[3][5000] = f32::NEG_INFINITY;
    bad[3][100] = f32::NAN;
    for whole in [tame, scaled, tiny, huge, bad] {
        let tiles = borders(&whole).len();
        for clip in [
            Clip::by_global_norm(0.5),
            Clip::by_global_norm(0.5).norm_type(NormType::L1).loss_scale(3.0).non_finite(NonFinite::Skip),
            Clip::by_global_norm(0.5).tensor_stats().non_finite(NonFinite::Zero),
        ] {
            let (expected, elements) = plain(clip, &whole);
            for cuts in
                [vec![0, tiles], vec![0, 3, tiles], vec![0, 0, 7, 8, tiles], vec![0, 1, 2, 9, 9, tiles]]
            {
                let all = ranks(cuts.len() - 1, cuts.len(), |rank| {
                    clip_tiles(clip, &whole, (cuts[rank.rank()], cuts[rank.rank() + 1]), rank)
                });
                for (record, _) in &all {
                    assert_eq!(
                        bits(record),
                        bits(&expected),
                        "{clip:?}, cut at {cuts:?}: {record:?}, not {expected:?}"
                    );
                }
                let bits = |x: &f32| if x.is_nan() { 0 } else { x.to_bits() };
                let clipped = all.iter().flat_map(|(_, elements)| elements).map(bits);
                assert!(clipped.eq(elements.iter().map(bits)), "{clip:?}, cut at {cuts:?}");
            }
        }
    }
}

/// So many tiles that finalize sums them in a cascade of two levels; a unit test has three.
#[test]
fn the_order_of_the_sum_is_that_of_the_device() {
    // Several seeds, since another order often gives the same bits.
    let counts = [1, 255, 257, 70_000].into_iter().chain([5000; 8]);
    for (seed, count) in (1..).zip(counts) {
        let elements: Vec<f32> = noise(seed, usize::try_from(count).unwrap());
        let (own, shared) = (gpu().buffer(&elements), gpu().buffer(&elements));
        // A gradient of one element is a tile.
        let list = |buffer| {
            (0..count)
                .map(move |at| Gradient::new(buffer, DType::F32).elements(at..at + 1))
                .collect::<Vec<_>>()
        };
        let clip = Clip::by_global_norm(1e-3);
        let expected = gpu().record(&gpu().clipper.prepare(&list(&own), clip).unwrap());
        let lens = vec![1_u64; elements.len()];
        let mut sharded = ShardedClip::new(&[clip]).unwrap().reproducible(&lens).unwrap();
        let plan = sharded.prepare(&gpu().clipper, &list(&shared)).unwrap();
        let record = sharded.clip(&plan, &gpu().queue, &mut SingleProcess).unwrap()[0];
        assert_eq!(bits(&record), bits(&expected), "{count} tiles: {record:?}, not {expected:?}");
    }
}

#[test]
fn shards_of_16_bits_and_replicas_are_reproducible() {
    let elements: Vec<bf16> = noise(5, 10_000).into_iter().map(bf16::from_f32).collect();
    let tied = noise(6, 100);
    let (own, own_tied) = (gpu().buffer_of(&elements), gpu().buffer(&tied));
    let clip = Clip::by_global_norm(1.0);
    let gradients = [Gradient::bf16(&own), Gradient::f32(&own_tied)];
    let expected = gpu().record(&gpu().clipper.prepare(&gradients, clip).unwrap());
    let records = ranks(2, 1, |rank| {
        let is_first = rank.rank() == 0;
        let buffer = gpu().buffer_of(if is_first { &elements[..4096] } else { &elements[4096..] });
        let replica = gpu().buffer(&tied);
        let gradient = Gradient::f32(&replica);
        let shards = [
            // The order of the shards does not matter.
            Shard::new(if is_first { gradient } else { gradient.unmeasured() }, 1, 0),
            Shard::new(Gradient::bf16(&buffer), 0, if is_first { 0 } else { 4096 }),
        ];
        let mut sharded = ShardedClip::new(&[clip]).unwrap().reproducible(&[10_000, 100]).unwrap();
        let plan = sharded.prepare_shards(&gpu().clipper, &shards).unwrap();
        let record = sharded.clip(&plan, &gpu().queue, rank).unwrap()[0];
        assert_eq!(gpu().read::<f32>(&replica)[7], tied[7] * record.factor);
        record
    });
    assert!(records.iter().all(|record| bits(record) == bits(&expected)), "{records:?}, not {expected:?}");
}

#[test]
fn shards_that_do_not_fit_are_named() {
    let clip = || ShardedClip::new(&[Clip::by_global_norm(1.0)]).unwrap().reproducible(&[10_000, 5]).unwrap();
    assert_eq!(clip().tile_elements(), Some(TILE));
    let buffer = gpu().buffer(&vec![1.0; 5000]);
    let error = |len: u64, whole: usize, offset: u64| {
        let gradient = Gradient::f32(&buffer).elements(0..len).label("w");
        clip().prepare_shards(&gpu().clipper, &[Shard::new(gradient, whole, offset)]).unwrap_err().to_string()
    };
    let begins = |len: u64, whole: usize, offset: u64| {
        format!(
            "gradient 0 (\"w\"): its {len} elements begin at element {offset} of gradient {whole} of the sharded clip, but "
        )
    };
    let cut = "a shard must begin and end at a multiple of 4096 elements, or at the end of its gradient";
    assert_eq!(error(5000, 0, 0), begins(5000, 0, 0) + cut);
    assert_eq!(error(904, 0, 4000), begins(904, 0, 4000) + cut);
    assert_eq!(error(5000, 0, 8192), begins(5000, 0, 8192) + "that gradient has 10000 elements");
    assert_eq!(error(5, 0, u64::MAX), begins(5, 0, u64::MAX) + "that gradient has 10000 elements");
    assert_eq!(error(5, 2, 0), begins(5, 2, 0) + "there are 2 whole gradients");
    assert!(
        clip()
            .prepare_shards(&gpu().clipper, &[Shard::new(Gradient::f32(&buffer).elements(0..1808), 0, 8192)])
            .is_ok()
    );

    let refused = |result: Result<(), Error>| match result {
        Err(Error::NotSharded { option, .. }) => option,
        other => panic!("{other:?}"),
    };
    let parts = [Shard::new(Gradient::f32(&buffer).elements(0..4096).part(0), 0, 0)];
    assert_eq!(
        refused(clip().prepare_shards(&gpu().clipper, &parts).map(drop)),
        "a reproducible norm of parts or of given partials"
    );
    assert_eq!(
        refused(clip().measure_on_cpu(&[cpu::Gradient::f32(&mut [1.0])]).map(drop)),
        "a reproducible norm on the CPU"
    );
    let plain = ShardedClip::new(&[Clip::by_global_norm(1.0)]).unwrap();
    assert_eq!(plain.tile_elements(), None);
    assert_eq!(refused(plain.prepare_shards(&gpu().clipper, &[]).map(drop)), "shards with a place");
    for clips in [
        vec![Clip::by_norm(1.0)],
        vec![Clip::by_global_norm(1.0); 2],
        vec![Clip::by_global_norm(1.0).norm_type(NormType::Inf)],
    ] {
        assert_eq!(
            refused(ShardedClip::new(&clips).unwrap().reproducible(&[1]).map(drop)),
            "a reproducible norm"
        );
    }
}

/// Every tile must be measured once. All ranks see the error, and no gradient is changed.
#[test]
fn tiles_that_are_missing_or_twice_are_named() {
    for (offsets, shards, element) in [([0, 0], 2, 0), ([8192, 0], 0, 4096)] {
        let errors = ranks(2, 0, |rank| {
            let offset = offsets[rank.rank()];
            let buffer: wgpu::Buffer = gpu().buffer(&[1.0; 4096]);
            let gradient = Gradient::f32(&buffer).elements(0..if offset == 8192 { 1808 } else { 4096 });
            let mut clip =
                ShardedClip::new(&[Clip::by_global_norm(1.0)]).unwrap().reproducible(&[10_000]).unwrap();
            let plan = clip.prepare_shards(&gpu().clipper, &[Shard::new(gradient, 0, offset)]).unwrap();
            let error = clip.clip(&plan, &gpu().queue, rank).unwrap_err();
            assert_eq!(gpu().read::<f32>(&buffer), [1.0; 4096]);
            error
        });
        assert_eq!(errors, vec![JoinError::Clip(Error::TileCount { whole: 0, element, shards }); 2]);
    }
}
