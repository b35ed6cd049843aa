//! What the examples would otherwise repeat: a device, buffers of floats, a kernel. None of it is about clipping.
#![allow(dead_code, reason = "no example uses all of it")]

use std::error::Error;
use std::process;
use std::sync::mpsc;

use wgpu::util::{BufferInitDescriptor, DeviceExt, DownloadBuffer};
use wgpu::{BufferUsages, PollType};

/// The best adapter of this machine, opened. Without one there is nothing to show: exit code 1. What gradclip and wgpu
/// log is shown as `RUST_LOG` says.
pub(crate) fn open() -> (wgpu::Device, wgpu::Queue) {
    env_logger::init();
    let Some(adapter) = gradclip::adapters::enumerate().into_iter().next() else {
        eprintln!("this example needs a GPU, and wgpu finds no adapter, not even a software one");
        process::exit(1);
    };
    println!("on {}", adapter.get_info().name);
    pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap_or_else(|error| {
        eprintln!("{error}");
        process::exit(1);
    })
}

/// A buffer that holds these floats.
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

/// The floats of a buffer, when all that has been submitted is done.
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

/// A compute shader and its buffers.
pub(crate) struct Kernel {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: u32,
}

impl Kernel {
    const WORKGROUP_SIZE: u32 = 64;

    /// `main` of this WGSL, in workgroups of `WORKGROUP_SIZE`, for so many invocations at least. The buffers are its
    /// bindings, in order.
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

    pub(crate) fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}
