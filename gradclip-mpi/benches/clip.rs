//! Times a sharded clip and its parts on every rank: `cargo bench --bench clip`, with `mpirun` as cargo's runner; `docs/scaling.md`
//! has the command. Options: `--elements N` of each shard, a multiple of the tile; `--iterations N`.
//!
//! Rank 0 prints one JSON line for each operation: quartiles over the iterations, each with the time of its slowest rank. All ranks
//! start an operation together, after a barrier. The gradients are restored before, outside the measured time. They exceed the
//! limit, so that every clip scales. The first iteration is not timed.
//!
//! Without `--bench`, as under `cargo test`, everything runs twice on small shards and nothing is printed. The norm is checked either way.

use std::time::{Instant, SystemTime, UNIX_EPOCH};
use std::{array, env};

use anyhow::{Context, Result, ensure};
use gradclip::distributed::{AllReduce, Shard, ShardPlan, ShardedClip};
use gradclip::wgpu::{
    Buffer, BufferDescriptor, BufferUsages, CommandEncoderDescriptor, Device, DeviceDescriptor, Limits,
    PollType, Queue,
};
use gradclip::{Clip, ClipPlan, ClipRecord, Clipper, Gradient, adapters};
use gradclip_mpi::MpiAllReduce;
use gradclip_mpi::mpi::environment::library_version;
use gradclip_mpi::mpi::topology::SimpleCommunicator;
use gradclip_mpi::mpi::traits::CommunicatorCollectives;

/// The collective is short, so that a sample has several in a row.
const COLLECTIVES: usize = 10;
/// The value of every element of a gradient.
const ELEMENT: f32 = 0.5;

/// What is timed, in the order of an iteration.
const OPERATIONS: [&str; 6] = [
    "local clip",
    "sharded clip",
    "measure and read back",
    "join, host",
    "join, collective",
    "collective alone",
];

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().collect();
    let option = |name: &str| -> Result<Option<usize>> {
        let Some(at) = arguments.iter().position(|argument| argument == name) else { return Ok(None) };
        let value = arguments.get(at + 1).with_context(|| format!("{name} needs a number"))?;
        Ok(Some(value.parse().with_context(|| format!("{name} {value}: not a number"))?))
    };
    let is_bench = arguments.iter().any(|argument| argument == "--bench");
    let elements = option("--elements")?.unwrap_or(if is_bench { 1 << 20 } else { 1 << 12 });
    let iterations = option("--iterations")?.unwrap_or(if is_bench { 30 } else { 1 });
    ensure!(elements > 0 && iterations > 0, "shards without elements, or no iterations");
    gradclip_mpi::run(|world| run(world, elements, iterations, is_bench));
    Ok(())
}

fn run(world: &SimpleCommunicator, elements: usize, iterations: usize, prints: bool) -> Result<()> {
    let mut rank = Rank::open(world, elements)?;
    let (index, size) = (rank.ranks.rank(), rank.ranks.size());
    let prints = prints && index == 0;
    if prints {
        let (seconds, mpi) = (SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(), library_version()?);
        let (gpu, optimized) = (&rank.gpu, !cfg!(debug_assertions));
        let mpi = mpi.split(',').next().unwrap_or_default();
        println!(
            r#"{{"kind":"mpi machine","gpu":{gpu:?},"mpi":{mpi:?},"optimized":{optimized},"ranks":{size},"unix_time":{seconds}}}"#
        );
    }
    let total = elements as u64 * size as u64;
    for mode in ["plain", "reproducible"] {
        let options = Clip::by_global_norm(ELEMENT / 2.0 * (total as f32).sqrt());
        let clip = ShardedClip::new(&[options])?;
        let gradient = Gradient::f32(&rank.gradient);
        let (clip, plan) = if mode == "plain" {
            let plan = clip.prepare(&rank.clipper, &[gradient])?;
            (clip, plan)
        } else {
            let clip = clip.reproducible(&[total])?;
            let shard = Shard::new(gradient, 0, index as u64 * elements as u64);
            let plan = clip.prepare_shards(&rank.clipper, &[shard])?;
            (clip, plan)
        };
        let local = Clip::by_global_norm(ELEMENT / 2.0 * (elements as f32).sqrt());
        let local = rank.clipper.prepare(&[Gradient::f32(&rank.gradient)], local)?;
        let mut plans = Plans { clip, plan, local, norm: f64::from(ELEMENT) * (total as f64).sqrt() };
        let mut samples: [Vec<f64>; OPERATIONS.len()] = array::from_fn(|_| Vec::new());
        let mut numbers = [0; 2];
        for iteration in 0..=iterations {
            let times = rank.iteration(&mut plans, &mut numbers)?;
            if iteration > 0 {
                samples.iter_mut().zip(times).for_each(|(samples, time)| samples.push(time));
            }
        }
        for (operation, samples) in OPERATIONS.iter().zip(&mut samples) {
            rank.ranks.max(samples)?;
            samples.sort_by(f64::total_cmp);
            let [low, median, high] = [1, 2, 3].map(|quarter| samples[(samples.len() - 1) * quarter / 4]);
            if prints {
                let [sums, maxima] = numbers;
                println!(
                    r#"{{"kind":"mpi","ranks":{size},"elements":{elements},"mode":"{mode}","operation":"{operation}","sums":{sums},"maxima":{maxima},"seconds":{median:.3e},"seconds_low":{low:.3e},"seconds_high":{high:.3e},"repetitions":{iterations}}}"#
                );
            }
        }
    }
    Ok(())
}

struct Plans {
    clip: ShardedClip,
    plan: ShardPlan,
    /// Clips the shard alone.
    local: ClipPlan,
    /// The norm of all shards.
    norm: f64,
}

struct Rank {
    ranks: MpiAllReduce,
    gpu: String,
    device: Device,
    queue: Queue,
    clipper: Clipper,
    gradient: Buffer,
    unclipped: Buffer,
}

impl Rank {
    fn open(world: &SimpleCommunicator, elements: usize) -> Result<Self> {
        let adapter = adapters::enumerate().into_iter().next().context("no GPU adapter on this machine")?;
        let required_limits = Clipper::recommended_limits(&adapter, &Limits::default());
        let descriptor = DeviceDescriptor { required_limits, ..DeviceDescriptor::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let size = 4 * elements as u64;
        let [gradient, unclipped] = ["gradient", "unclipped"].map(|label| {
            device.create_buffer(&BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            })
        });
        queue.write_buffer(&unclipped, 0, bytemuck::cast_slice(&vec![ELEMENT; elements]));
        let clipper = Clipper::new(&device)?;
        let ranks = MpiAllReduce::duplicate(world);
        Ok(Self { ranks, gpu: adapter.get_info().name, device, queue, clipper, gradient, unclipped })
    }

    /// Returns the time of each operation. Sets `numbers` to those of the sums and maxima of a clip.
    fn iteration(&mut self, plans: &mut Plans, numbers: &mut [usize; 2]) -> Result<[f64; OPERATIONS.len()]> {
        let Plans { clip, plan, local, norm } = plans;
        let check = |record: &ClipRecord| {
            let total = f64::from(record.total_norm);
            ensure!((total / *norm - 1.0).abs() < 1e-6, "the norm is {total}, not {norm}");
            Ok(())
        };

        let start = self.start()?;
        let mut encoder = self.device.create_command_encoder(&CommandEncoderDescriptor::default());
        local.encode(&mut encoder);
        let ticket = local.read_back(&mut encoder);
        self.queue.submit([encoder.finish()]);
        ticket.wait()?;
        let local_clip = start.elapsed();

        let start = self.start()?;
        let records = clip.clip(plan, &self.queue, &mut self.ranks)?;
        self.device.poll(PollType::wait_indefinitely())?;
        let sharded_clip = start.elapsed();
        check(&records[0])?;

        let start = self.start()?;
        let share = plan.measure(&self.queue).wait();
        let measure = start.elapsed();

        let start = self.start()?;
        let mut timed = Timed { ranks: &mut self.ranks, numbers, seconds: 0.0 };
        let records = clip.join([share], &mut timed)?;
        let collective = timed.seconds;
        let host = start.elapsed().as_secs_f64() - collective;
        check(&records[0])?;

        let [mut sums, mut maxima] = numbers.map(|count| vec![0.0; count]);
        let start = self.start()?;
        for _ in 0..COLLECTIVES {
            self.ranks.sum_and_max(&mut sums, &mut maxima)?;
        }
        let alone = start.elapsed().as_secs_f64() / COLLECTIVES as f64;
        let [local_clip, sharded_clip, measure] =
            [local_clip, sharded_clip, measure].map(|time| time.as_secs_f64());
        Ok([local_clip, sharded_clip, measure, host, collective, alone])
    }

    /// Restores the gradient, waits for all ranks, and starts the clock.
    fn start(&self) -> Result<Instant> {
        let mut encoder = self.device.create_command_encoder(&CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&self.unclipped, 0, &self.gradient, 0, None);
        self.queue.submit([encoder.finish()]);
        self.device.poll(PollType::wait_indefinitely())?;
        self.ranks.communicator().barrier();
        Ok(Instant::now())
    }
}

/// Times the collective of a clip.
struct Timed<'a> {
    ranks: &'a mut MpiAllReduce,
    numbers: &'a mut [usize; 2],
    seconds: f64,
}

impl AllReduce for Timed<'_> {
    type Error = <MpiAllReduce as AllReduce>::Error;

    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn size(&self) -> usize {
        self.ranks.size()
    }

    fn sum(&mut self, values: &mut [f64]) -> Result<(), Self::Error> {
        self.ranks.sum(values)
    }

    fn max(&mut self, values: &mut [f64]) -> Result<(), Self::Error> {
        self.ranks.max(values)
    }

    fn sum_and_max(&mut self, sums: &mut [f64], maxima: &mut [f64]) -> Result<(), Self::Error> {
        let start = Instant::now();
        self.ranks.sum_and_max(sums, maxima)?;
        self.seconds = start.elapsed().as_secs_f64();
        *self.numbers = [sums.len(), maxima.len()];
        Ok(())
    }
}
