//! What one rank owns: the gradients of its shard in a buffer of its device, and the optimizer's state.

use std::ops::Range;

use anyhow::{Context, Result};
use gradclip::distributed::{AllReduce, JoinError, Shard, ShardPlan, ShardedClip};
use gradclip::wgpu::{
    Buffer, BufferDescriptor, BufferUsages, CommandEncoderDescriptor, Device, DeviceDescriptor, MapMode,
    PollType, Queue,
};
use gradclip::{ClipRecord, Clipper, Gradient, adapters};

/// Returns the shards of all ranks, cut at multiples of a tile. They follow one another; some may be empty.
pub(crate) fn ranges(clip: &ShardedClip, parameters: usize, size: usize) -> Result<Vec<Range<usize>>> {
    let tile: usize = clip.tile_elements().context("the clip is reproducible")?.try_into()?;
    let tiles = parameters.div_ceil(tile);
    let cut = |rank: usize| (tiles * rank / size * tile).min(parameters);
    Ok((0..size).map(|rank| cut(rank)..cut(rank + 1)).collect())
}

pub(crate) struct OwnShard {
    range: Range<usize>,
    device: Device,
    queue: Queue,
    gradient: Buffer,
    staging: Buffer,
    plan: ShardPlan,
    /// Adam's averages of gradients and of their squares.
    averages: [Vec<f32>; 2],
}

impl OwnShard {
    /// Opens a device and prepares the clip of this shard.
    pub(crate) fn open(clip: &ShardedClip, range: Range<usize>) -> Result<Self> {
        // The first adapter. On a machine with several GPUs, choose it by the rank on that machine.
        let adapter = adapters::enumerate().into_iter().next().context("no GPU adapter on this machine")?;
        let (device, queue) = pollster::block_on(adapter.request_device(&DeviceDescriptor::default()))?;
        let buffer = |label, usage| {
            // A buffer cannot be empty, but a shard can.
            let size = (4 * range.len().max(1)) as u64;
            device.create_buffer(&BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let gradient =
            buffer("gradient", BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC);
        let staging = buffer("staging", BufferUsages::MAP_READ | BufferUsages::COPY_DST);
        let shards = [Shard::new(Gradient::f32(&gradient), 0, range.start as u64)];
        let shards = if range.is_empty() { &[] } else { &shards[..] };
        let plan = clip.prepare_shards(&Clipper::new(&device)?, shards)?;
        let averages = [0, 1].map(|_| vec![0.0; range.len()]);
        Ok(Self { range, device, queue, gradient, staging, plan, averages })
    }

    /// Returns the parameters that this rank updates.
    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Adds up the gradients of the micro-batches, which follow one another, and writes the sum to the device.
    pub(crate) fn load_sum(&self, gradients: &[f32]) {
        let mut sum = vec![0.0; self.range.len()];
        for gradient in gradients.chunks_exact(self.range.len().max(1)) {
            for (sum, element) in sum.iter_mut().zip(gradient) {
                *sum += element;
            }
        }
        self.queue.write_buffer(&self.gradient, 0, bytemuck::cast_slice(&sum));
    }

    /// Clips the gradients of all ranks together. Every rank must call it.
    pub(crate) fn clip<C: AllReduce>(
        &self,
        clip: &mut ShardedClip,
        ranks: &mut C,
    ) -> Result<ClipRecord, JoinError<C::Error>> {
        Ok(clip.clip(&self.plan, &self.queue, ranks)?[0])
    }

    /// Updates the parameters of this shard by Adam, on the host.
    pub(crate) fn adam(&mut self, parameters: &mut [f32], step: usize, learning_rate: f32) -> Result<()> {
        const DECAYS: [f32; 2] = [0.9, 0.999];
        let gradient = self.read()?;
        let step = i32::try_from(step)?;
        let [first, second] = &mut self.averages;
        for (((parameter, g), first), second) in parameters.iter_mut().zip(gradient).zip(first).zip(second) {
            *first += (1.0 - DECAYS[0]) * (g - *first);
            *second += (1.0 - DECAYS[1]) * (g * g - *second);
            let [unbiased, unbiased_square] = [(*first, DECAYS[0]), (*second, DECAYS[1])]
                .map(|(average, decay)| average / (1.0 - decay.powi(step)));
            *parameter -= learning_rate * unbiased / (unbiased_square.sqrt() + 1e-8);
        }
        Ok(())
    }

    /// Reads the clipped gradients back.
    fn read(&self) -> Result<Vec<f32>> {
        let mut encoder = self.device.create_command_encoder(&CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&self.gradient, 0, &self.staging, 0, None);
        encoder.map_buffer_on_submit(&self.staging, MapMode::Read, .., |result| {
            result.expect("the device is there");
        });
        self.queue.submit([encoder.finish()]);
        self.device.poll(PollType::wait_indefinitely())?;
        let elements = bytemuck::pod_collect_to_vec(&self.staging.get_mapped_range(..)?);
        self.staging.unmap();
        Ok(elements)
    }
}
