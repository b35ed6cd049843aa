//! Times steps on the device.

use std::error::Error;
use std::time::Instant;

use wgpu::{CommandEncoder, Device, Features, PollType, Queue};

/// The features that timestamps need. Without them, times are wall-clock times.
pub(crate) const FEATURES: Features =
    Features::TIMESTAMP_QUERY.union(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);

/// The number of runs of each kind of step.
const REPEATS: usize = 20;

/// The share of a step's time that clipping takes: the median and the quartiles over several runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Share {
    /// Compares the times of steps with those of steps without clipping, which ran just before or after them. The times of a
    /// busy machine vary, so a share can come out negative.
    pub(crate) fn of(times: &[f64], without: &[f64]) -> Self {
        let mut shares: Vec<_> =
            times.iter().zip(without).map(|(time, without)| 1.0 - without / time).collect();
        shares.sort_unstable_by(f64::total_cmp);
        let quartile = |i| shares[i * (shares.len() - 1) / 4];
        Self { low: quartile(1), median: quartile(2), high: quartile(3) }
    }
}

/// Measures by timestamps on the device, or by wall clock.
pub(crate) struct Timer<'a> {
    device: &'a Device,
    queue: &'a Queue,
    /// Two timestamps, and buffers to resolve and to read them.
    timestamps: Option<(wgpu::QuerySet, wgpu::Buffer, wgpu::Buffer)>,
}

impl<'a> Timer<'a> {
    const BYTES: u64 = 2 * size_of::<u64>() as u64;

    pub(crate) fn new(device: &'a Device, queue: &'a Queue) -> Self {
        let timestamps = device.features().contains(FEATURES).then(|| {
            let query_set = device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            });
            let buffer = |usage| {
                let size = Self::BYTES;
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size,
                    usage,
                    mapped_at_creation: false,
                })
            };
            let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
            let readable = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
            (query_set, resolved, readable)
        });
        Self { device, queue, timestamps }
    }

    /// Returns the name of the clock.
    pub(crate) fn clock(&self) -> &'static str {
        if self.timestamps.is_some() { "timestamps on the device" } else { "wall clock" }
    }

    /// Runs the steps in turn, several times, and returns the times of each, in seconds.
    pub(crate) fn times<const N: usize>(
        &self,
        steps: [&dyn Fn(&mut CommandEncoder); N],
    ) -> Result<[Vec<f64>; N], Box<dyn Error>> {
        let mut times = [const { Vec::new() }; N];
        for _ in 0..REPEATS {
            for (step, times) in steps.iter().zip(&mut times) {
                times.push(self.time(step)?);
            }
        }
        Ok(times)
    }

    /// Runs one step, and returns its time in seconds.
    fn time(&self, step: &dyn Fn(&mut CommandEncoder)) -> Result<f64, Box<dyn Error>> {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let Some((query_set, resolved, readable)) = &self.timestamps else {
            step(&mut encoder);
            let start = Instant::now();
            self.queue.submit([encoder.finish()]);
            self.device.poll(PollType::wait_indefinitely())?;
            return Ok(start.elapsed().as_secs_f64());
        };
        encoder.write_timestamp(query_set, 0);
        step(&mut encoder);
        encoder.write_timestamp(query_set, 1);
        encoder.resolve_query_set(query_set, 0..2, resolved, 0);
        encoder.copy_buffer_to_buffer(resolved, 0, readable, 0, Self::BYTES);
        self.queue.submit([encoder.finish()]);
        readable.map_async(wgpu::MapMode::Read, .., |_| {});
        self.device.poll(PollType::wait_indefinitely())?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&readable.get_mapped_range(..)?);
        readable.unmap();
        let nanoseconds =
            ticks[1].saturating_sub(ticks[0]) as f64 * f64::from(self.queue.get_timestamp_period());
        Ok(nanoseconds * 1e-9)
    }
}
