//! What both test binaries stand on: devices, and in `typed` gradients laid out in buffers among other things.

pub(crate) mod typed;

use std::sync::mpsc;

use bytemuck::Pod;

use gradclip::Clipper;
use gradclip::wgpu::{self, util::DeviceExt as _};

/// The adapters of this machine, best first.
pub(crate) fn adapters() -> Vec<wgpu::Adapter> {
    let adapters = gradclip::adapters::enumerate();
    assert!(
        !adapters.is_empty(),
        "no adapter, so the GPU path cannot be tested; a software one will do: apt-get install \
         mesa-vulkan-drivers libvulkan1, or let scripts/test do it"
    );
    adapters
}

/// The least that a [`Clipper`] accepts: two slots, small windows, short grids.
pub(crate) fn least_limits() -> wgpu::Limits {
    wgpu::Limits {
        max_storage_buffers_per_shader_stage: 4,
        max_bindings_per_bind_group: 5,
        max_storage_buffer_binding_size: 4 * 65536 + 256,
        max_compute_workgroups_per_dimension: 256,
        ..wgpu::Limits::default()
    }
}

/// Numbers in [-1, 1), the same for the same seed.
pub(crate) fn noise(seed: u32, len: usize) -> Vec<f32> {
    let number = |index: u64| {
        let mut hash = (u64::from(seed) << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        ((hash ^ hash >> 32) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len as u64).map(number).collect()
}

/// The bits of every element: what to compare where NaN must equal itself, and -0.0 not 0.0.
pub(crate) fn bits(gradients: &[Vec<f32>]) -> Vec<Vec<u32>> {
    gradients.iter().map(|gradient| gradient.iter().map(|g| g.to_bits()).collect()).collect()
}

/// An open device.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) clipper: Clipper,
}

impl Gpu {
    pub(crate) fn open(adapter: &wgpu::Adapter, limits: wgpu::Limits) -> Self {
        let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
        let clipper = Clipper::new(&device).expect("a device that is good enough");
        Self { device, queue, clipper }
    }

    /// A buffer with this in it.
    pub(crate) fn buffer_of<T: Pod>(&self, contents: &[T]) -> wgpu::Buffer {
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(contents),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    }

    /// What is in a buffer now.
    pub(crate) fn read<T: Pod>(&self, buffer: &wgpu::Buffer) -> Vec<T> {
        if buffer.size() == 0 {
            return Vec::new();
        }
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: buffer.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.submit(|encoder| encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size()));
        let (mapped, is_mapped) = mpsc::channel();
        staging
            .map_async(wgpu::MapMode::Read, .., move |result| mapped.send(result).expect("somebody waits"));
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is there");
        // Another thread that polls this device may run the callback, and be late.
        is_mapped.recv().expect("a callback").expect("a mapped buffer");
        bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..).expect("a mapped range"))
    }

    /// Records commands and submits them.
    pub(crate) fn submit<T>(&self, record: impl FnOnce(&mut wgpu::CommandEncoder) -> T) -> T {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let recorded = record(&mut encoder);
        self.queue.submit([encoder.finish()]);
        recorded
    }
}
