//! The wgpu device of one rank.

use gradclip::wgpu::{
    Buffer, BufferDescriptor, BufferUsages, CommandEncoderDescriptor, Device, DeviceDescriptor, MapMode,
    PollType, Queue,
};
use gradclip::{Clipper, DType, Gradient, adapters};

pub(crate) struct Gpu {
    pub(crate) device: Device,
    pub(crate) queue: Queue,
    pub(crate) clipper: Clipper,
}

impl Gpu {
    pub(crate) fn open() -> Self {
        let adapter =
            adapters::enumerate().into_iter().next().expect("an adapter; scripts/test installs one");
        let (device, queue) =
            pollster::block_on(adapter.request_device(&DeviceDescriptor::default())).unwrap();
        let clipper = Clipper::new(&device).unwrap();
        Self { device, queue, clipper }
    }

    /// Creates a buffer for each gradient.
    pub(crate) fn buffers(&self, gradients: &[Vec<f32>]) -> Vec<Buffer> {
        gradients.iter().map(|elements| self.buffer(elements)).collect()
    }

    fn buffer(&self, elements: &[f32]) -> Buffer {
        // A buffer cannot be empty; the range of an empty gradient can.
        let size = 4 * elements.len().max(1) as u64;
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let buffer = self.device.create_buffer(&BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(elements));
        buffer
    }

    pub(crate) fn read(&self, buffer: &Buffer, elements: usize) -> Vec<f32> {
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let staging = self.device.create_buffer(&BufferDescriptor {
            label: None,
            size: buffer.size(),
            usage,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, None);
        encoder.map_buffer_on_submit(&staging, MapMode::Read, .., Result::unwrap);
        self.queue.submit([encoder.finish()]);
        self.device.poll(PollType::wait_indefinitely()).unwrap();
        let mut all: Vec<f32> = bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..).unwrap());
        all.truncate(elements);
        all
    }
}

/// Lists gradients that fill their buffers, or are empty.
pub(crate) fn listed<'a>(gradients: &[Vec<f32>], buffers: &'a [Buffer]) -> Vec<Gradient<'a>> {
    let gradient = |(elements, buffer): (&Vec<f32>, &'a _)| {
        Gradient::new(buffer, DType::F32).elements(0..elements.len() as u64)
    };
    gradients.iter().zip(buffers).map(gradient).collect()
}
