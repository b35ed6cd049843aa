//! A GPU device with timestamps, cache eviction and staging: times one command buffer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use gradclip::adapters::{self, is_software};
use gradclip::slices::DeviceChoice;
use gradclip::{Clipper, wgpu};
use wgpu::{Buffer, BufferUsages, CommandBuffer, CommandEncoder, Features, PollType};

use crate::roofline::gpu::{BoundBuffers, RooflineKernels, STEPS};
use crate::timing::Sample;

/// More than twice the last-level cache of the GPUs that we know. No API reports the cache size.
const DEFAULT_COLD_BYTES: usize = 256 << 20;
/// The bytes that move between host and device at a time.
pub(crate) const STAGING: usize = 64 << 20;

/// A device with a clipper, timestamps, roofline kernels, a staging buffer and cache eviction.
#[derive(Debug)]
pub struct GpuDevice {
    /// The adapter's name, backend and driver.
    pub name: String,
    /// Whether the adapter is a software adapter.
    pub software: bool,
    /// The device, with all of the adapter's limits.
    pub device: wgpu::Device,
    /// The device's queue.
    pub queue: wgpu::Queue,
    /// Prepares plans on the device.
    pub clipper: Clipper,
    /// Prepares plans that bind buffers as an array, if the adapter has arrays of buffers.
    pub with_arrays: Option<Clipper>,
    /// The first wgpu error that no error scope caught.
    first_error: Arc<OnceLock<String>>,
    clock: Option<Clock>,
    /// The roofline kernels.
    pub rooflines: RooflineKernels,
    /// A mappable buffer for results.
    pub staging: Buffer,
    /// Memory that is read between repetitions to evict the gradients. `None` for warm caches.
    eviction: Option<BoundBuffers>,
    /// The bytes read between repetitions to evict the gradients.
    pub cold_bytes: usize,
}

/// The device's timestamp queries.
#[derive(Debug)]
struct Clock {
    queries: wgpu::QuerySet,
    resolved: Buffer,
    staging: Buffer,
    /// The length of a tick, in seconds.
    seconds_per_tick: f64,
}

impl GpuDevice {
    /// Opens the chosen device, or returns `None` if the choice is the CPU path.
    ///
    /// `cold_bytes` overrides the bytes that are read between repetitions.
    pub fn open(choice: &DeviceChoice, cold_bytes: Option<usize>) -> Result<Option<Self>> {
        if *choice == DeviceChoice::Cpu {
            return Ok(None);
        }
        let adapters = adapters::enumerate();
        let Some(index) = choice.choose(&adapters)? else { return Ok(None) };
        let adapter = &adapters[index];
        let info = adapter.get_info();
        let software = is_software(&info);
        let timestamps = Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        let features = adapter.features() & (timestamps | Clipper::BINDING_ARRAYS);
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            required_features: features,
            required_limits: adapter.limits(),
            ..Default::default()
        });
        let (device, queue) =
            pollster::block_on(request).with_context(|| format!("cannot open {:?}", info.name))?;
        let first_error = Arc::<OnceLock<String>>::default();
        let record_error = first_error.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let _ = record_error.set(error.to_string());
        }));
        let clock = features
            .contains(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS)
            .then(|| Clock::new(&device, queue.get_timestamp_period()));
        let clipper = Clipper::new(&device)?;
        let rooflines = RooflineKernels::new(&device);
        // Cache effects are not worth measuring on a software adapter.
        let cold_bytes =
            cold_bytes.unwrap_or(if software { 0 } else { DEFAULT_COLD_BYTES }).next_multiple_of(256);
        let eviction =
            (cold_bytes > 0).then(|| allocate(&device, &buffer_sizes(&device, cold_bytes))).transpose()?;
        Ok(Some(Self {
            name: format!("{} ({}, {})", info.name, info.backend, info.driver_info),
            software,
            with_arrays: clipper.with_binding_arrays().ok(),
            clipper,
            first_error,
            clock,
            eviction: eviction.map(|buffers| rooflines.read(&buffers)),
            rooflines,
            staging: allocate_one(&device, STAGING, BufferUsages::COPY_DST | BufferUsages::MAP_READ)?,
            cold_bytes,
            device,
            queue,
        }))
    }

    /// Returns the clock of [`Sample::seconds`]: `gpu` or `wall`.
    pub const fn clock(&self) -> &'static str {
        if self.clock.is_some() { "gpu" } else { "wall" }
    }

    /// Creates a command encoder.
    pub fn encoder(&self) -> CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Submits `commands` and waits for them. Fails if wgpu has reported an error.
    pub fn submit_and_wait(&self, commands: impl IntoIterator<Item = CommandBuffer>) -> Result<()> {
        self.queue.submit(commands);
        self.wait()
    }

    /// Waits for all submitted work. Catches the panic of wgpu 30 on a lost device.
    fn wait(&self) -> Result<()> {
        let wait = AssertUnwindSafe(|| self.device.poll(PollType::wait_indefinitely()));
        catch_unwind(wait).map_err(|_| gradclip::Error::DeviceLost)??;
        self.first_error.get().map_or(Ok(()), |first_error| bail!("{first_error}"))
    }

    /// Records commands with `encode`, submits them and waits.
    pub fn run(&self, encode: impl FnOnce(&mut CommandEncoder)) -> Result<()> {
        let mut encoder = self.encoder();
        encode(&mut encoder);
        self.submit_and_wait([encoder.finish()])
    }

    /// Times the commands that `encode` records. First evicts the data from the caches, unless `cached` is set.
    pub fn time(&self, cached: bool, encode: impl FnOnce(&mut CommandEncoder)) -> Result<Sample> {
        if let Some(eviction) = self.eviction.as_ref().filter(|_| !cached) {
            self.run(|encoder| self.rooflines.encode(eviction, STEPS.len() / 2, encoder))?;
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
            Some(clock) => self.elapsed(clock)?,
            None => wall,
        };
        Ok(Sample { seconds, wall, encode: Some(encoded), ready: Some(ready) })
    }

    /// Returns the seconds between the two timestamps.
    fn elapsed(&self, clock: &Clock) -> Result<f64> {
        self.run(|encoder| {
            encoder.resolve_query_set(&clock.queries, 0..2, &clock.resolved, 0);
            encoder.copy_buffer_to_buffer(&clock.resolved, 0, &clock.staging, 0, clock.staging.size());
        })?;
        self.read_mapped(&clock.staging, |bytes| {
            let [start, end]: [u64; 2] = bytemuck::pod_read_unaligned(bytes);
            Ok(end.saturating_sub(start).max(1) as f64 * clock.seconds_per_tick)
        })
    }

    /// Maps `buffer` and passes its bytes to `read`.
    pub fn read_mapped<T>(&self, buffer: &Buffer, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let (sender, receiver) = mpsc::channel();
        buffer.map_async(wgpu::MapMode::Read, .., move |mapped| {
            let _ = sender.send(mapped);
        });
        self.wait()?;
        receiver.recv()??;
        let result =
            read(&buffer.get_mapped_range(..).map_err(|error| anyhow!("cannot read results back: {error}"))?);
        buffer.unmap();
        result
    }

    /// Writes `bytes` to the start of `buffer`.
    pub fn write(&self, buffer: &Buffer, bytes: &[u8]) -> Result<()> {
        for (index, piece) in bytes.chunks(STAGING).enumerate() {
            self.queue.write_buffer(buffer, (index * STAGING) as u64, piece);
            self.submit_and_wait([])?;
        }
        Ok(())
    }

    /// Returns the index of the fastest step count for `buffers`, as [`RooflineKernels::encode`] takes it.
    pub fn fastest_steps(&self, cached: bool, buffers: &BoundBuffers) -> Result<usize> {
        let least_seconds = |steps| {
            let time_once = || {
                let sample = self.time(cached, |encoder| self.rooflines.encode(buffers, steps, encoder));
                sample.map(|sample| sample.seconds)
            };
            let seconds = [time_once()?, time_once()?, time_once()?];
            Ok(seconds.into_iter().fold(f64::INFINITY, f64::min))
        };
        let seconds = (0..STEPS.len()).map(least_seconds).collect::<Result<Vec<_>>>()?;
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
            seconds_per_tick: f64::from(nanoseconds) * 1e-9,
        }
    }
}

/// Splits `bytes` into as few buffer sizes as the device's limit allows.
fn buffer_sizes(device: &wgpu::Device, bytes: usize) -> Vec<usize> {
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

/// Creates a buffer. Fails if the device has too little memory.
pub fn allocate_one(device: &wgpu::Device, size: usize, usage: BufferUsages) -> Result<Buffer> {
    let scopes = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation]
        .map(|filter| device.push_error_scope(filter));
    let descriptor =
        wgpu::BufferDescriptor { label: None, size: size as u64, usage, mapped_at_creation: false };
    let buffer = device.create_buffer(&descriptor);
    // All scopes are popped, in reverse order.
    let errors: Vec<_> =
        scopes.into_iter().rev().filter_map(|scope| pollster::block_on(scope.pop())).collect();
    match errors.into_iter().next() {
        None => Ok(buffer),
        Some(error) => Err(anyhow!("cannot allocate a buffer of {size} bytes: {error}")),
    }
}
