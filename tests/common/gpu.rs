//! Adapters, and an open device with its buffers and submissions.

use std::sync::mpsc;

use bytemuck::Pod;

use gradclip::wgpu::{self, util::DeviceExt as _};
use gradclip::{ClipPlan, ClipRecord, Clipper, ReadBack};

/// Returns the adapters of this machine, best first.
///
/// OpenGL is left out unless `WGPU_BACKEND` names it: its devices panic if two threads use them, so such a run needs
/// `--test-threads 1`.
pub(crate) fn adapters() -> Vec<wgpu::Adapter> {
    let with_gl = wgpu::Backends::from_env().is_some_and(|named| named.contains(wgpu::Backends::GL));
    let mut adapters = gradclip::adapters::enumerate();
    adapters.retain(|adapter| with_gl || adapter.get_info().backend != wgpu::Backend::Gl);
    assert!(
        !adapters.is_empty(),
        "the tests of the GPU path need an adapter, and there is none; a software adapter is enough: apt-get install \
         mesa-vulkan-drivers libvulkan1, or run scripts/test, which installs it"
    );
    adapters
}

/// Returns the lowest limits that a [`Clipper`] accepts: two slots, small windows, short grids.
pub(crate) fn least_limits() -> wgpu::Limits {
    wgpu::Limits {
        max_storage_buffers_per_shader_stage: 4,
        max_bindings_per_bind_group: 5,
        max_storage_buffer_binding_size: 4 * 65536 + 256,
        max_compute_workgroups_per_dimension: 256,
        ..wgpu::Limits::default()
    }
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
        Self::open_with(adapter, limits, wgpu::Features::empty())
    }

    /// Opens a device with arrays of buffers if the adapter has them. With `limits` that allow few bindings, small sets
    /// are bound as an array, too.
    pub(crate) fn with_binding_arrays(adapter: &wgpu::Adapter, mut limits: wgpu::Limits) -> Option<Self> {
        limits.max_binding_array_elements_per_shader_stage =
            adapter.limits().max_binding_array_elements_per_shader_stage;
        let features = Clipper::BINDING_ARRAYS;
        if !adapter.features().contains(features) {
            println!("NOT RUN: {} has no arrays of buffers", adapter.get_info().name);
            return None;
        }
        let gpu = Self::open_with(adapter, limits, features);
        let clipper = gpu.clipper.with_binding_arrays().expect("the adapter has arrays of buffers");
        Some(Self { clipper, ..gpu })
    }

    pub(crate) fn open_with(
        adapter: &wgpu::Adapter,
        required_limits: wgpu::Limits,
        required_features: wgpu::Features,
    ) -> Self {
        let descriptor = wgpu::DeviceDescriptor { required_limits, required_features, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
        let clipper = Clipper::new(&device).expect("a device that meets the requirements");
        Self { device, queue, clipper }
    }

    /// Creates a storage buffer that holds `contents`.
    pub(crate) fn buffer_of<T: Pod>(&self, contents: &[T]) -> wgpu::Buffer {
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(contents),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    }

    /// Creates a storage buffer that holds f32 `contents`.
    pub(crate) fn buffer(&self, contents: &[f32]) -> wgpu::Buffer {
        self.buffer_of(contents)
    }

    /// Creates a storage buffer of `size` bytes that the queue can write.
    pub(crate) fn writable(&self, size: u64) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Reads a buffer back.
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
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            mapped.send(result).expect("the receiver is alive");
        });
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is alive");
        // The callback may run late, on another thread that polls this device.
        is_mapped.recv().expect("a callback").expect("a mapped buffer");
        bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..).expect("a mapped range"))
    }

    pub(crate) fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Records commands and submits them.
    pub(crate) fn submit<T>(&self, record: impl FnOnce(&mut wgpu::CommandEncoder) -> T) -> T {
        let mut encoder = self.encoder();
        let recorded = record(&mut encoder);
        self.queue.submit([encoder.finish()]);
        recorded
    }

    /// Submits a plan, and returns the ticket of its first record.
    pub(crate) fn step(&self, plan: &ClipPlan) -> ReadBack {
        self.submit(|encoder| {
            plan.encode(encoder);
            plan.read_back(encoder)
        })
    }

    /// Submits a plan, and returns its first record.
    #[track_caller]
    pub(crate) fn record(&self, plan: &ClipPlan) -> ClipRecord {
        self.step(plan).wait().expect("a record")
    }

    /// Submits a plan, and returns all its records.
    #[track_caller]
    pub(crate) fn records(&self, plan: &ClipPlan) -> Vec<ClipRecord> {
        let ticket = self.submit(|encoder| {
            plan.encode(encoder);
            plan.read_back_all(encoder)
        });
        ticket.wait().expect("records")
    }

    /// Compiles a shader with one entry point, and binds buffers to it in order.
    pub(crate) fn program(&self, source: &str, buffers: &[&wgpu::Buffer]) -> Program {
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let entries = (0..).zip(buffers);
        let entries = entries
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() });
        let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries.collect::<Vec<_>>(),
        });
        Program { pipeline, bind_group }
    }
}

/// A compute shader with its buffers.
#[derive(Debug)]
pub(crate) struct Program {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
}

impl Program {
    pub(crate) fn encode(&self, encoder: &mut wgpu::CommandEncoder, workgroups: u32) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(workgroups, 1, 1);
    }
}
