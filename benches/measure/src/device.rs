//! A device with a clock: how something is timed there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use gradclip::adapters::{self, is_software};
use gradclip::slices::DeviceChoice;
use gradclip::{Clipper, wgpu};
use wgpu::{Buffer, BufferUsages, CommandBuffer, CommandEncoder, Features, PollType};

use crate::kernels::{Bound, Kernels, STEPS};
use crate::timing::Sample;

/// Twice the last-level cache of any GPU that is known to us. No API tells.
const COLD: usize = 256 << 20;
/// What is moved between host and device at a time.
pub(crate) const STAGING: usize = 64 << 20;

/// A device, and what it takes to measure on it.
#[derive(Debug)]
pub struct Gpu {
    /// The name of the adapter, with its backend and driver.
    pub name: String,
    /// Whether it is a software adapter.
    pub software: bool,
    /// The device, with all limits of the adapter.
    pub device: wgpu::Device,
    /// Its queue.
    pub queue: wgpu::Queue,
    /// Prepares plans on the device.
    pub clipper: Clipper,
    /// The first error of wgpu that no error scope has caught.
    complaint: Arc<OnceLock<String>>,
    clock: Option<Clock>,
    /// The rooflines.
    pub kernels: Kernels,
    /// A buffer to copy results to and to map.
    pub staging: Buffer,
    /// Read between repetitions, so that caches forget the gradients. None if they may remember.
    sweep: Option<Bound>,
    /// The bytes of other memory that are read between repetitions.
    pub cold: usize,
}

/// Timestamps of the device.
#[derive(Debug)]
struct Clock {
    queries: wgpu::QuerySet,
    resolved: Buffer,
    staging: Buffer,
    /// Seconds.
    tick: f64,
}

impl Gpu {
    /// Opens a device. Returns `None` if the choice is the CPU path alone. Reads `cold` bytes between repetitions.
    pub fn open(choice: &DeviceChoice, cold: Option<usize>) -> Result<Option<Self>> {
        if *choice == DeviceChoice::Cpu {
            return Ok(None);
        }
        let adapters = adapters::enumerate();
        let Some(index) = choice.choose(&adapters)? else { return Ok(None) };
        let adapter = &adapters[index];
        let info = adapter.get_info();
        let software = is_software(&info);
        let features =
            adapter.features() & (Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            required_features: features,
            required_limits: adapter.limits(),
            ..Default::default()
        });
        let (device, queue) =
            pollster::block_on(request).with_context(|| format!("cannot open {:?}", info.name))?;
        let complaint = Arc::<OnceLock<String>>::default();
        let complain = complaint.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let _ = complain.set(error.to_string());
        }));
        let clock = features
            .contains(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS)
            .then(|| Clock::new(&device, queue.get_timestamp_period()));
        let kernels = Kernels::new(&device);
        // What a software adapter computes is no measure of any cache.
        let cold = cold.unwrap_or(if software { 0 } else { COLD }).next_multiple_of(256);
        let sweep = (cold > 0).then(|| allocate(&device, &pieces(&device, cold))).transpose()?;
        Ok(Some(Self {
            name: format!("{} ({}, {})", info.name, info.backend, info.driver_info),
            software,
            clipper: Clipper::new(&device)?,
            complaint,
            clock,
            sweep: sweep.map(|buffers| kernels.read(&buffers)),
            kernels,
            staging: allocate_one(&device, STAGING, BufferUsages::COPY_DST | BufferUsages::MAP_READ)?,
            cold,
            device,
            queue,
        }))
    }

    /// Returns whose clock times an operation: `gpu` or `wall`.
    pub const fn clock(&self) -> &'static str {
        if self.clock.is_some() { "gpu" } else { "wall" }
    }

    /// Creates an encoder.
    pub fn encoder(&self) -> CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Submits commands and waits for them. Fails if wgpu has reported an error.
    pub fn submit_and_wait(&self, commands: impl IntoIterator<Item = CommandBuffer>) -> Result<()> {
        self.queue.submit(commands);
        self.wait()
    }

    /// Waits for all that has been submitted. wgpu 30 panics where the driver has lost the device.
    fn wait(&self) -> Result<()> {
        let wait = AssertUnwindSafe(|| self.device.poll(PollType::wait_indefinitely()));
        catch_unwind(wait).map_err(|_| gradclip::Error::DeviceLost)??;
        self.complaint.get().map_or(Ok(()), |complaint| bail!("{complaint}"))
    }

    /// Encodes, submits and waits.
    pub fn run(&self, encode: impl FnOnce(&mut CommandEncoder)) -> Result<()> {
        let mut encoder = self.encoder();
        encode(&mut encoder);
        self.submit_and_wait([encoder.finish()])
    }

    /// Times what is encoded. Evicts its data from the caches before, unless it may be cached.
    pub fn time(&self, cached: bool, encode: impl FnOnce(&mut CommandEncoder)) -> Result<Sample> {
        if let Some(sweep) = self.sweep.as_ref().filter(|_| !cached) {
            self.run(|encoder| self.kernels.encode(sweep, STEPS.len() / 2, encoder))?;
        }
        let start = Instant::now();
        let mut encoder = self.encoder();
        if let Some(clock) = &self.clock {
            encoder.write_timestamp(&clock.queries, 0);
        }
        let before = Instant::now();
        encode(&mut encoder);
        let encoded = before.elapsed().as_secs_f64();
        if let Some(clock) = &self.clock {
            encoder.write_timestamp(&clock.queries, 1);
        }
        let commands = encoder.finish();
        let ready = start.elapsed().as_secs_f64();
        self.submit_and_wait([commands])?;
        let wall = start.elapsed().as_secs_f64();
        let seconds = match &self.clock {
            Some(clock) => self.ticks(clock)?,
            None => wall,
        };
        Ok(Sample { seconds, wall, encode: Some(encoded), ready: Some(ready) })
    }

    /// The time between the two timestamps.
    fn ticks(&self, clock: &Clock) -> Result<f64> {
        self.run(|encoder| {
            encoder.resolve_query_set(&clock.queries, 0..2, &clock.resolved, 0);
            encoder.copy_buffer_to_buffer(&clock.resolved, 0, &clock.staging, 0, clock.staging.size());
        })?;
        self.mapped(&clock.staging, |bytes| {
            let [start, end]: [u64; 2] = bytemuck::pod_read_unaligned(bytes);
            Ok(end.saturating_sub(start).max(1) as f64 * clock.tick)
        })
    }

    /// Maps a buffer, and looks at its bytes.
    pub fn mapped<T>(&self, buffer: &Buffer, look: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let (sender, receiver) = mpsc::channel();
        buffer.map_async(wgpu::MapMode::Read, .., move |mapped| {
            let _ = sender.send(mapped);
        });
        self.wait()?;
        receiver.recv()??;
        let result =
            look(&buffer.get_mapped_range(..).map_err(|error| anyhow!("cannot read results back: {error}"))?);
        buffer.unmap();
        result
    }

    /// Fills a buffer from its beginning.
    pub fn write(&self, buffer: &Buffer, bytes: &[u8]) -> Result<()> {
        for (index, piece) in bytes.chunks(STAGING).enumerate() {
            self.queue.write_buffer(buffer, (index * STAGING) as u64, piece);
            self.submit_and_wait([])?;
        }
        Ok(())
    }

    /// Returns which number of steps is the quickest for these buffers, for [`Kernels::encode`].
    pub fn best(&self, cached: bool, bound: &Bound) -> Result<usize> {
        let quickest = |steps| {
            let once = || {
                let sample = self.time(cached, |encoder| self.kernels.encode(bound, steps, encoder));
                sample.map(|sample| sample.seconds)
            };
            let seconds = [once()?, once()?, once()?];
            Ok(seconds.into_iter().fold(f64::INFINITY, f64::min))
        };
        let seconds = (0..STEPS.len()).map(quickest).collect::<Result<Vec<_>>>()?;
        Ok((0..STEPS.len()).min_by(|&a, &b| seconds[a].total_cmp(&seconds[b])).unwrap_or_default())
    }
}

impl Clock {
    fn new(device: &wgpu::Device, nanoseconds: f32) -> Self {
        let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 16,
                usage,
                mapped_at_creation: false,
            })
        };
        Self {
            queries,
            resolved: buffer(BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
            staging: buffer(BufferUsages::COPY_DST | BufferUsages::MAP_READ),
            tick: f64::from(nanoseconds) * 1e-9,
        }
    }
}

/// So many bytes in as few buffers as the device allows.
fn pieces(device: &wgpu::Device, bytes: usize) -> Vec<usize> {
    let largest = largest_buffer(device);
    (0..bytes).step_by(largest).map(|start| largest.min(bytes - start)).collect()
}

pub(crate) fn largest_buffer(device: &wgpu::Device) -> usize {
    usize::try_from(device.limits().max_buffer_size).unwrap_or(usize::MAX) / 256 * 256
}

pub(crate) fn allocate(device: &wgpu::Device, sizes: &[usize]) -> Result<Vec<Buffer>> {
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
    sizes.iter().map(|&size| allocate_one(device, size, usage)).collect()
}

/// Creates a buffer. Fails if there is not enough memory.
pub fn allocate_one(device: &wgpu::Device, size: usize, usage: BufferUsages) -> Result<Buffer> {
    let scopes = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation]
        .map(|filter| device.push_error_scope(filter));
    let descriptor =
        wgpu::BufferDescriptor { label: None, size: size as u64, usage, mapped_at_creation: false };
    let buffer = device.create_buffer(&descriptor);
    // In the reverse order of their making, and all of them.
    let errors: Vec<_> =
        scopes.into_iter().rev().filter_map(|scope| pollster::block_on(scope.pop())).collect();
    match errors.into_iter().next() {
        None => Ok(buffer),
        Some(error) => Err(anyhow!("cannot allocate a buffer of {size} bytes: {error}")),
    }
}
