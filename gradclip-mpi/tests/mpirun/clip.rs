//! Sharded clips, with a device for each rank.

use std::convert::Infallible;
use std::fmt::Debug;

use gradclip::distributed::{AllReduce, JoinError, Shard, ShardedClip};
use gradclip::wgpu::CommandEncoderDescriptor;
use gradclip::{Clip, ClipRecord, Error, Gradient, NonFinite, NormType, ZClip};
use gradclip_mpi::MpiAllReduce;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

use crate::device::{Gpu, listed};
use crate::{End, Scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "clip::parity", ranks: &[1, 2, 4], run: parity, end: End::Passes },
    Scenario { name: "clip::reproducible", ranks: &[1, 2, 4, 5], run: reproducible, end: End::Passes },
    Scenario { name: "clip::shapes_of_shards", ranks: &[4], run: shapes, end: End::Passes },
    Scenario { name: "clip::non_finite_gradients", ranks: &[2, 4], run: non_finite, end: End::Passes },
    Scenario { name: "clip::magnitudes", ranks: &[3], run: magnitudes, end: End::Passes },
    Scenario { name: "clip::replicas", ranks: &[3], run: replicas, end: End::Passes },
    Scenario { name: "clip::state", ranks: &[3], run: state, end: End::Passes },
    Scenario { name: "clip::different_options", ranks: &[3], run: different_options, end: End::Passes },
    Scenario { name: "clip::lost_device", ranks: &[3], run: lost_device, end: End::Passes },
    Scenario { name: "clip::panic_that_gradclip_catches", ranks: &[2], run: caught_panic, end: End::Passes },
    Scenario { name: "clip::halves_of_the_job", ranks: &[4], run: halves, end: End::Passes },
    Scenario {
        name: "clip::error_ends_the_job",
        ranks: &[2],
        run: returned_error,
        end: End::Fails {
            code: Some(1),
            stderr: &[
                "rank 0 of 2: error: rank 1 could not measure its gradients\n",
                "rank 1 of 2: error: rank 1 could not measure its gradients: the device was lost",
            ],
        },
    },
];

type Joined = Result<Vec<ClipRecord>, JoinError<Infallible>>;

/// A rank: its device and its communicator.
struct Rank<'a> {
    gpu: Gpu,
    world: &'a SimpleCommunicator,
    all_reduce: MpiAllReduce,
}

impl<'a> Rank<'a> {
    fn new(world: &'a SimpleCommunicator) -> Self {
        Self { gpu: Gpu::open(), world, all_reduce: MpiAllReduce::duplicate(world) }
    }

    fn rank(&self) -> usize {
        self.all_reduce.rank()
    }

    fn size(&self) -> usize {
        self.all_reduce.size()
    }

    /// Clips shards by one norm: `shards` has the gradients of each rank. Returns the outcome and this rank's elements.
    fn clip(&mut self, clip: Clip, shards: &[Vec<Vec<f32>>]) -> (Joined, Vec<Vec<f32>>) {
        let shard = &shards[self.rank()];
        let buffers = self.gpu.buffers(shard);
        let mut sharded = ShardedClip::new(&[clip]).unwrap();
        let plan = sharded.prepare(&self.gpu.clipper, &listed(shard, &buffers)).unwrap();
        let joined = sharded.clip(&plan, &self.gpu.queue, &mut self.all_reduce);
        let elements = shard.iter().zip(&buffers).map(|(shard, buffer)| self.gpu.read(buffer, shard.len()));
        (joined, elements.collect())
    }

    /// Fails unless all ranks pass the same text, and returns it.
    fn agree(&self, what: &str, value: &impl Debug) -> String {
        let text = format!("{value:?}");
        let length = i64::try_from(text.len()).unwrap();
        let mut lengths = vec![0; self.size()];
        self.world.all_gather_into(&length, &mut lengths[..]);
        assert_eq!(lengths, vec![length; self.size()], "{what}: rank {} has {text}", self.rank());
        let mut texts = vec![0_u8; text.len() * self.size()];
        self.world.all_gather_into(text.as_bytes(), &mut texts[..]);
        for other in texts.chunks(text.len()) {
            assert_eq!(String::from_utf8_lossy(other), text, "{what}: rank {}", self.rank());
        }
        text
    }

    /// Prints on rank 0.
    fn print(&self, line: &str) {
        if self.rank() == 0 {
            println!("{line}");
        }
    }
}

/// Cuts each gradient at shares of its length, one shard for each rank.
fn cut(gradients: &[Vec<f32>], bounds: &[f64]) -> Vec<Vec<Vec<f32>>> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a small length")]
    let at = |gradient: &Vec<f32>, share: f64| (gradient.len() as f64 * share) as usize;
    let shard = |pair: &[f64]| {
        let range = |gradient| at(gradient, pair[0])..at(gradient, pair[1]);
        gradients.iter().map(|gradient| gradient[range(gradient)].to_vec()).collect()
    };
    bounds.windows(2).map(shard).collect()
}

/// Equal shares, and shares of which each is twice as large as the one before.
fn bounds(size: usize) -> [Vec<f64>; 2] {
    let doubled = |rank: usize| ((1_u64 << rank) - 1) as f64 / ((1_u64 << size) - 1) as f64;
    [(0..=size).map(|rank| rank as f64 / size as f64).collect(), (0..=size).map(doubled).collect()]
}

/// Noise in -1..1.
fn noise(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// The p-norm in f64.
fn reference(gradients: &[Vec<f32>], p: f32) -> f64 {
    let magnitudes = gradients.iter().flatten().map(|&g| f64::from(g).abs());
    if p.is_infinite() {
        return magnitudes.fold(0.0, f64::max);
    }
    let p = f64::from(p);
    magnitudes.map(|magnitude| magnitude.powf(p)).sum::<f64>().powf(p.recip())
}

fn assert_near(what: &str, norm: f32, expected: f64) {
    assert!((f64::from(norm) / expected - 1.0).abs() < 1e-6, "{what}: {norm} instead of {expected}");
}

/// Multiplies, as the scale pass does.
fn scaled(gradients: &[Vec<f32>], factor: f32) -> Vec<Vec<f32>> {
    gradients.iter().map(|elements| elements.iter().map(|g| g * factor).collect()).collect()
}

fn parity(world: &SimpleCommunicator) -> Result<(), String> {
    let mut rank = Rank::new(world);
    let whole = [noise(1, 20_000), vec![-9.5; 33], Vec::new(), vec![0.25], noise(2, 777)];
    let buffers = rank.gpu.buffers(&whole);
    for norm_type in [NormType::L1, NormType::L2, NormType::Inf, NormType::P(3.0), NormType::P(9.0)] {
        let clip = Clip::by_global_norm(0.5).norm_type(norm_type);
        let plain = rank.gpu.clipper.prepare(&listed(&whole, &buffers), clip).unwrap();
        let mut encoder = rank.gpu.device.create_command_encoder(&CommandEncoderDescriptor::default());
        plain.encode_norm(&mut encoder);
        let plain = plain.read_back(&mut encoder);
        rank.gpu.queue.submit([encoder.finish()]);
        let plain = plain.wait().unwrap();
        // Other norms need only one of the cuts.
        let cuts = if norm_type == NormType::L2 { 2 } else { 1 };
        for bounds in bounds(rank.size()).iter().rev().take(cuts) {
            let what = format!("{norm_type:?}, shards at {bounds:?}");
            let shards = cut(&whole, bounds);
            let (records, elements) = rank.clip(clip, &shards);
            let record = records.unwrap()[0];
            rank.agree(&what, &record);
            if rank.size() == 1 {
                assert_eq!(record, plain, "{what}");
            }
            assert_near(&what, record.total_norm, reference(&whole, norm_type.p()));
            assert_near(&what, record.factor, plain.factor.into());
            assert_eq!(record.max_magnitude, plain.max_magnitude, "{what}");
            assert_eq!(elements, scaled(&shards[rank.rank()], record.factor), "{what}");
        }
    }
    Ok(())
}

/// Rank 0 prints the bits of the record. The harness compares them between numbers of ranks.
fn reproducible(world: &SimpleCommunicator) -> Result<(), String> {
    let mut rank = Rank::new(world);
    let (own, size) = (rank.rank(), rank.size());
    for (name, whole) in [
        ("ordinary", [noise(1, 30_000), noise(2, 9000)]),
        ("tiny and huge", [vec![1e-30; 30_000], vec![3e38; 9000]]),
    ] {
        let elements = whole.each_ref().map(|gradient| gradient.len() as u64);
        let clip = ShardedClip::new(&[Clip::by_global_norm(0.5)]).unwrap();
        let mut clip = clip.reproducible(&elements).unwrap();
        let tile = usize::try_from(clip.tile_elements().unwrap()).unwrap();
        // Unequal shards, so that the cuts for two ranks are not among those for four.
        let shards: Vec<(usize, Vec<f32>)> = whole
            .iter()
            .map(|gradient| {
                let tiles = gradient.len().div_ceil(tile);
                let cut = |rank: usize| (tiles * rank * rank / (size * size) * tile).min(gradient.len());
                (cut(own), gradient[cut(own)..cut(own + 1)].to_vec())
            })
            .collect();
        let (offsets, shards): (Vec<_>, Vec<_>) = shards.into_iter().unzip();
        let buffers = rank.gpu.buffers(&shards);
        let listed: Vec<_> = listed(&shards, &buffers)
            .into_iter()
            .zip(&offsets)
            .enumerate()
            .filter(|(index, _)| !shards[*index].is_empty())
            .map(|(index, (gradient, &offset))| Shard::new(gradient, index, offset as u64))
            .collect();
        let plan = clip.prepare_shards(&rank.gpu.clipper, &listed).unwrap();
        let record = clip.clip(&plan, &rank.gpu.queue, &mut rank.all_reduce).unwrap()[0];
        rank.agree(name, &record);
        for (shard, buffer) in shards.iter().zip(&buffers) {
            // A subnormal factor is not exact as an f32.
            if shard.is_empty() || !record.factor.is_normal() {
                continue;
            }
            let expected = scaled(std::slice::from_ref(shard), record.factor).concat();
            assert_eq!(rank.gpu.read(buffer, shard.len()), expected, "{name}");
        }
        let bits: &[u32] = bytemuck::cast_slice(std::slice::from_ref(&record));
        rank.print(&format!("{name}: {bits:x?} {record:?}"));
    }
    Ok(())
}

fn shapes(world: &SimpleCommunicator) -> Result<(), String> {
    let mut rank = Rank::new(world);
    let mut all: Vec<(Vec<Vec<Vec<f32>>>, f32)> = Vec::new();
    let empty = vec![Vec::new(); rank.size()];
    // Each rank in turn has all elements, or one element.
    for only in 0..rank.size() {
        let mut shards = empty.clone();
        shards[only] = vec![vec![3.0], vec![-4.0]];
        all.push((shards, 5.0));
        let mut shards = vec![vec![vec![1.0; 5000]]; rank.size()];
        shards[only] = vec![vec![20.0]];
        let others = 5000.0 * (rank.size() - 1) as f32;
        all.push((shards, (others + 400.0).sqrt()));
    }
    // No rank has gradients: no list, or empty ones.
    all.push((empty.clone(), 0.0));
    all.push((vec![vec![Vec::new(); 2]; rank.size()], 0.0));
    // More ranks than elements.
    let mut shards = empty;
    shards[rank.size() - 1] = vec![vec![2.0]];
    all.push((shards, 2.0));
    for (shards, expected) in all {
        let what = format!("{shards:.20?}");
        let what = &what[..what.len().min(100)];
        let (records, elements) = rank.clip(Clip::by_global_norm(1.0), &shards);
        let record = records.unwrap()[0];
        rank.agree(what, &record);
        if expected == 0.0 {
            assert_eq!((record.total_norm, record.clip_coef), (0.0, 1.0), "{what}");
        } else {
            assert_near(what, record.total_norm, expected.into());
            assert!(record.clipped(), "{what}");
        }
        assert_eq!(elements, scaled(&shards[rank.rank()], record.factor), "{what}");
    }
    Ok(())
}

fn non_finite(world: &SimpleCommunicator) -> Result<(), String> {
    let mut rank = Rank::new(world);
    let own = vec![noise(3, 100), vec![2.0]];
    for norm_type in [NormType::L1, NormType::L2, NormType::Inf, NormType::P(3.0)] {
        for bad in 0..rank.size() {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut shards = vec![own.clone(); rank.size()];
                shards[bad][1][0] = value;
                let what = format!("{value} on rank {bad}, {norm_type:?}");
                let clip = Clip::by_global_norm(1.0).norm_type(norm_type);

                let (records, elements) = rank.clip(clip.non_finite(NonFinite::Skip), &shards);
                let record = records.unwrap()[0];
                rank.agree(&what, &record);
                assert!(record.skip() && record.non_finite(), "{what}: {record:?}");
                let is_right = if value.is_nan() { f32::is_nan } else { f32::is_infinite };
                assert!(is_right(record.total_norm), "{what}: {record:?}");
                assert_eq!(record.first_non_finite(), Some(1), "{what}");
                // Unchanged, also a NaN.
                let bits =
                    |shard: &[Vec<f32>]| shard.concat().iter().map(|g| g.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&elements), bits(&shards[rank.rank()]), "{what}");

                if value == f32::INFINITY {
                    continue;
                }
                let (error, _) = rank.clip(clip.non_finite(NonFinite::Error), &shards);
                let error = error.unwrap_err();
                rank.agree(&what, &error);
                let JoinError::Clip(Error::OnRank { rank: named, .. }) = error else {
                    panic!("{what}: {error}")
                };
                assert_eq!(named, bad, "{what}");

                let (records, elements) = rank.clip(clip.non_finite(NonFinite::Zero), &shards);
                rank.agree(&what, &records.unwrap()[0]);
                assert!(elements.concat().iter().all(|&g| g == 0.0), "{what}: {elements:?}");
            }
        }
    }
    // An infinity and a NaN on different ranks.
    let mut shards = vec![own; rank.size()];
    shards[0][1][0] = f32::NEG_INFINITY;
    shards[1][0][7] = f32::NAN;
    let (records, _) = rank.clip(Clip::by_global_norm(1.0).non_finite(NonFinite::Skip), &shards);
    let record = records.unwrap()[0];
    rank.agree("both", &record);
    assert!(record.total_norm.is_nan() && record.skip());
    Ok(())
}

/// Norms whose squares overflow or vanish in f32, and a total beyond f32.
fn magnitudes(world: &SimpleCommunicator) -> Result<(), String> {
    let mut rank = Rank::new(world);
    let size = rank.size();
    let cases: [(&str, Vec<f32>); 5] = [
        ("large", vec![1e30; size]),
        ("small", vec![1e-30; size]),
        ("subnormal", vec![1e-44; size]),
        ("one large", (0..size).map(|rank| if rank == 1 { 1e30 } else { 1e-30 }).collect()),
        ("beyond f32", vec![3e38; size]),
    ];
    for (name, magnitudes) in cases {
        for norm_type in [NormType::L1, NormType::L2, NormType::Inf, NormType::P(3.0)] {
            let what = format!("{name}, {norm_type:?}");
            let shards: Vec<_> = magnitudes.iter().map(|&magnitude| vec![vec![magnitude; 64]]).collect();
            let (records, _) = rank.clip(Clip::by_global_norm(1e-3).norm_type(norm_type), &shards);
            let record = records.unwrap()[0];
            rank.agree(&what, &record);
            let norm = f64::from(record.norm_significand) * f64::from(record.norm_exponent).exp2();
            let expected = reference(&shards.concat(), norm_type.p());
            assert!((norm / expected - 1.0).abs() < 1e-6, "{what}: {norm:e} instead of {expected:e}");
            assert!(!record.non_finite(), "{what}: {record:?}");
            assert_eq!(record.clipped(), expected > 1e-3, "{what}: {record:?}");
        }
    }
    Ok(())
}

/// The gradient of a tied parameter has a copy on every rank: counted once, and scaled everywhere.
fn replicas(world: &SimpleCommunicator) -> Result<(), String> {
    let mut rank = Rank::new(world);
    let shard = [vec![3.0; 10], vec![4.0; 10]];
    for counted in 0..rank.size() {
        let buffers = rank.gpu.buffers(&shard);
        let tied = Gradient::f32(&buffers[1]);
        let tied = if rank.rank() == counted { tied } else { tied.unmeasured() };
        let mut sharded = ShardedClip::new(&[Clip::by_global_norm(1.0)]).unwrap();
        let gradients = [Gradient::f32(&buffers[0]), tied];
        let plan = sharded.prepare(&rank.gpu.clipper, &gradients).unwrap();
        let record = sharded.clip(&plan, &rank.gpu.queue, &mut rank.all_reduce).unwrap()[0];
        rank.agree("replicas", &record);
        let expected = (90.0 * rank.size() as f64 + 160.0).sqrt();
        assert_near("replicas", record.total_norm, expected);
        assert_eq!(rank.gpu.read(&buffers[1], 10), vec![4.0 * record.factor; 10]);
    }
    Ok(())
}

/// Twelve steps whose limit follows past norms. The sixth is skipped on all ranks, because one rank has a NaN.
fn state(world: &SimpleCommunicator) -> Result<(), String> {
    let rank = &mut Rank::new(world);
    let clip = Clip::by_global_norm(10.0)
        .z_clip(ZClip { warm_up: 3, ..ZClip::default() })
        .non_finite(NonFinite::Skip)
        .count_steps();
    let mut sharded = ShardedClip::new(&[clip]).unwrap();
    let shard = [vec![0.0; 100]];
    let buffers = rank.gpu.buffers(&shard);
    let plan = sharded.prepare(&rank.gpu.clipper, &listed(&shard, &buffers)).unwrap();
    for step in 1..=12_u8 {
        let is_bad = step == 6 && rank.rank() + 1 == rank.size();
        let value = if is_bad { f32::NAN } else { 1.0 / f32::from(step) + rank.rank() as f32 / 7.0 };
        rank.gpu.queue.write_buffer(&buffers[0], 0, bytemuck::cast_slice(&[value; 100]));
        let record = sharded.clip(&plan, &rank.gpu.queue, &mut rank.all_reduce).unwrap()[0];
        rank.agree("state", &(record, sharded.histories(), sharded.step_counts()));
        assert_eq!(record.skip(), step == 6);
    }
    let counts = sharded.step_counts()[0];
    assert_eq!((counts.steps, counts.non_finite), (12, 1));
    Ok(())
}

fn different_options(world: &SimpleCommunicator) -> Result<(), String> {
    let mut rank = Rank::new(world);
    let clip = Clip::by_global_norm(1.0);
    let cases = [
        (clip, Clip::by_global_norm(2.0), "max_norm (1 and 2)"),
        (clip, clip.norm_type(NormType::Inf), "norm_type (2 and inf)"),
        (clip, clip.norm_type(NormType::P(9.0)), "norm_type (2 and 9)"),
        (clip, clip.non_finite(NonFinite::Skip), "non_finite (propagate and skip)"),
        (clip, Clip::by_norm(1.0), "the kind of clip (by_global_norm and by_norm)"),
        (clip, clip.loss_scale(4.0), "the inverse of the loss scale (0.25 and 1)"),
        (clip, clip.skip_above(7.0), "skip_above"),
    ];
    let shards = vec![vec![vec![3.0, 4.0]]; rank.size()];
    for odd in 0..rank.size() {
        for (common, other, message) in cases {
            let own = if rank.rank() == odd { other } else { common };
            let (joined, elements) = rank.clip(own, &shards);
            let error = joined.unwrap_err();
            rank.agree(message, &error);
            let error = error.to_string();
            assert!(error.contains(message), "'{error}' instead of '{message}'");
            assert_eq!(elements, shards[0], "{message}");
        }
    }
    // The job goes on.
    let (joined, _) = rank.clip(clip, &shards);
    rank.agree("afterwards", &joined.unwrap()[0]);
    Ok(())
}

fn lost_device(world: &SimpleCommunicator) -> Result<(), String> {
    let mut rank = Rank::new(world);
    for bad in 0..rank.size() {
        // The others keep their gradients, and succeed in the next step without the rank's gradients.
        let gpu = Gpu::open();
        let shard = [vec![3.0, 4.0]];
        let buffers = gpu.buffers(&shard);
        let mut sharded = ShardedClip::new(&[Clip::by_global_norm(1.0)]).unwrap();
        let plan = sharded.prepare(&gpu.clipper, &listed(&shard, &buffers)).unwrap();
        let is_bad = rank.rank() == bad;
        if is_bad {
            gpu.device.destroy();
        }
        let error = sharded.clip(&plan, &gpu.queue, &mut rank.all_reduce).unwrap_err();
        let cause = is_bad.then(|| Box::new(Error::DeviceLost));
        assert_eq!(error, JoinError::Clip(Error::RankFailed { rank: bad, cause }));
        let share = (!is_bad).then(|| plan.measure(&gpu.queue).wait());
        let record = sharded.join(share, &mut rank.all_reduce).unwrap()[0];
        rank.agree("without the lost device", &record);
        assert_near("without the lost device", record.total_norm, (25.0 * (rank.size() - 1) as f64).sqrt());
        if !is_bad {
            assert_eq!(gpu.read(&buffers[0], 2), shard[0]);
        }
    }
    Ok(())
}

/// wgpu panics if a queue gets a buffer of another device. gradclip returns an error, and the guard must not end the job.
fn caught_panic(world: &SimpleCommunicator) -> Result<(), String> {
    let mut rank = Rank::new(world);
    let shard = [vec![3.0]];
    let buffers = rank.gpu.buffers(&shard);
    let mut sharded = ShardedClip::new(&[Clip::by_global_norm(1.0)]).unwrap();
    let plan = sharded.prepare(&rank.gpu.clipper, &listed(&shard, &buffers)).unwrap();
    let records = sharded.clip(&plan, &rank.gpu.queue, &mut rank.all_reduce).unwrap();
    if rank.rank() == 1 {
        assert_eq!(plan.write_records(&Gpu::open().queue, &records), Err(Error::ForeignQueue));
    }
    world.barrier();
    rank.print("both ranks are there");
    Ok(())
}

/// Each half of the ranks has a model of its own.
fn halves(world: &SimpleCommunicator) -> Result<(), String> {
    let gpu = Gpu::open();
    let half = u8::try_from(world.rank() % 2).unwrap();
    let color = mpi::topology::Color::with_value(half.into());
    let mut ranks = MpiAllReduce::new(world.split_by_color(color).unwrap());
    let shard = [vec![f32::from(half + 1); 8]];
    let buffers = gpu.buffers(&shard);
    // The halves clip differently, and take different numbers of steps.
    let mut sharded = ShardedClip::new(&[Clip::by_global_norm(f32::from(half) + 0.5)]).unwrap();
    let plan = sharded.prepare(&gpu.clipper, &listed(&shard, &buffers)).unwrap();
    for step in 0..=half {
        let record = sharded.clip(&plan, &gpu.queue, &mut ranks).unwrap()[0];
        if step == 0 {
            assert_eq!(record.total_norm, 4.0 * f32::from(half + 1));
        }
    }
    Ok(())
}

fn returned_error(world: &SimpleCommunicator) -> Result<(), String> {
    let mut rank = Rank::new(world);
    if rank.rank() == 1 {
        rank.gpu.device.destroy();
    }
    let mut sharded = ShardedClip::new(&[Clip::by_global_norm(1.0)]).unwrap();
    let shard = sharded.prepare(&rank.gpu.clipper, &[]).and_then(|plan| plan.measure(&rank.gpu.queue).wait());
    sharded.join([shard], &mut rank.all_reduce).map_err(|error| error.to_string())?;
    Ok(())
}
