//! wgpu code that the examples share: device, buffers, compute kernels. Nothing here concerns clipping.
#![allow(dead_code, reason = "no example uses all of it")]

use std::error::Error;
use std::process;
use std::sync::mpsc;

use wgpu::util::{BufferInitDescriptor, DeviceExt, DownloadBuffer};
use wgpu::{BufferUsages, PollType};

/// Opens the best adapter of this machine, or exits with code 1 if there is none. `RUST_LOG` sets the log level.
pub(crate) fn open() -> (wgpu::Device, wgpu::Queue) {
    open_with(wgpu::Features::empty())
}

/// [`open`] with those of `features` that the adapter has.
pub(crate) fn open_with(features: wgpu::Features) -> (wgpu::Device, wgpu::Queue) {
    env_logger::init();
    let Some(adapter) = gradclip::adapters::enumerate().into_iter().next() else {
        eprintln!("this example needs a wgpu adapter (hardware or software), and none was found");
        process::exit(1);
    };
    println!("running on {}", adapter.get_info().name);
    let required_features = adapter.features() & features;
    let descriptor = wgpu::DeviceDescriptor { required_features, ..Default::default() };
    pollster::block_on(adapter.request_device(&descriptor)).unwrap_or_else(|error| {
        eprintln!("{error}");
        process::exit(1);
    })
}

/// Creates a buffer that contains `floats`.
pub(crate) fn storage(device: &wgpu::Device, label: &str, floats: &[f32]) -> wgpu::Buffer {
    device.create_buffer_init(&BufferInitDescriptor {
        label: Some(label),
        contents: bytemuck::cast_slice(floats),
        usage: BufferUsages::STORAGE
            | BufferUsages::UNIFORM
            | BufferUsages::COPY_SRC
            | BufferUsages::COPY_DST,
    })
}

/// Waits for all submitted work, then returns the contents of `buffer`.
pub(crate) fn read(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    buffer: &wgpu::Buffer,
) -> Result<Vec<f32>, Box<dyn Error>> {
    let (sender, receiver) = mpsc::channel();
    DownloadBuffer::read_buffer(device, queue, &buffer.slice(..), move |bytes| {
        let _ = sender.send(bytes);
    });
    device.poll(PollType::wait_indefinitely())?;
    Ok(bytemuck::pod_collect_to_vec(&receiver.recv()??))
}

/// A compute pipeline with its bind group.
pub(crate) struct Kernel {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: u32,
}

impl Kernel {
    pub(crate) const WORKGROUP_SIZE: u32 = 64;

    /// Compiles `wgsl` and binds `buffers` to the bindings 0, 1, 2, ... of group 0. The entry point is `main`; its
    /// workgroups have `WORKGROUP_SIZE` invocations, and at least `invocations` run.
    pub(crate) fn new(
        device: &wgpu::Device,
        wgsl: &str,
        buffers: &[&wgpu::Buffer],
        invocations: u32,
    ) -> Self {
        let wgsl = format!("const WORKGROUP_SIZE = {}u;\n{wgsl}", Self::WORKGROUP_SIZE);
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(wgsl.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let bindings = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() });
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &bindings.collect::<Vec<_>>(),
        });
        Self { pipeline, bind_group, workgroups: invocations.div_ceil(Self::WORKGROUP_SIZE) }
    }

    /// Encodes one dispatch.
    pub(crate) fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}
