//! Input validation, on wgpu's noop backend, which checks every call and runs nothing. Every error must come from this
//! crate; wgpu itself must report none.

mod buffers;
mod device_limits;
mod options;
mod state;
mod updates;

use std::sync::{Arc, Mutex};

use gradclip::wgpu::{self, BufferUsages};
use gradclip::{Clip, Clipper, DType, Gradient};

const NORM: Clip = Clip::by_global_norm(1.0);

/// A device, and the uncaptured errors that wgpu has reported.
pub(crate) struct Noop {
    adapter: wgpu::Adapter,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    uncaptured: Arc<Mutex<Vec<String>>>,
}

impl Noop {
    pub(crate) fn new(limits: wgpu::Limits) -> Self {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::NOOP,
            backend_options: wgpu::BackendOptions {
                noop: wgpu::NoopBackendOptions::enabled(),
                ..Default::default()
            },
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let adapter =
            pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
        Self::open(adapter, limits)
    }

    fn open(adapter: wgpu::Adapter, limits: wgpu::Limits) -> Self {
        let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        let uncaptured = Arc::<Mutex<Vec<String>>>::default();
        let reported = uncaptured.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            reported.lock().unwrap().push(error.to_string());
        }));
        Self { adapter, device, queue, uncaptured }
    }

    /// Opens another device of the same adapter.
    fn sibling(&self) -> Self {
        Self::open(self.adapter.clone(), wgpu::Limits::default())
    }

    pub(crate) fn clipper(&self) -> Clipper {
        Clipper::new(&self.device).unwrap()
    }

    fn buffer(&self, size: u64, usage: BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    pub(crate) fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    pub(crate) fn storage(&self, size: u64) -> wgpu::Buffer {
        self.buffer(size, BufferUsages::STORAGE)
    }
}

impl Drop for Noop {
    fn drop(&mut self) {
        let uncaptured = self.uncaptured.lock().unwrap();
        assert!(uncaptured.is_empty() || std::thread::panicking(), "wgpu reports {uncaptured:?}");
    }
}

/// Returns a gradient of f32 that fills a buffer.
pub(crate) fn f32s(buffer: &wgpu::Buffer) -> Gradient<'_> {
    Gradient::new(buffer, DType::F32)
}
