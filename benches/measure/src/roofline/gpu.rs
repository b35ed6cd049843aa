//! The GPU's rooflines: kernels that only read, or only write back what they read.

use wgpu::{BindingResource, Buffer, BufferBinding, BufferSize, BufferUsages, CommandEncoder, Device};

use gradclip::wgpu;

const WORKGROUP: u32 = 256;
const VECTOR: u64 = 16;
/// What a thread loads four vectors at a time, so many times; which is best depends on the device and the size.
pub(crate) const STEPS: [u32; 4] = [1, 2, 4, 8];

/// The kernels, each with several numbers of steps.
#[derive(Debug)]
pub struct RooflineKernels {
    device: Device,
    read: Variants,
    in_place: Variants,
    /// Read and never written.
    zero: Buffer,
    /// The longest binding, in bytes.
    window: u64,
    /// The most workgroups in a row.
    grid: u32,
}

#[derive(Debug)]
struct Variants {
    layout: wgpu::BindGroupLayout,
    pipelines: Vec<wgpu::ComputePipeline>,
}

/// A kernel on some buffers.
#[derive(Debug)]
pub struct BoundBuffers {
    read: bool,
    windows: Vec<(wgpu::BindGroup, u64)>,
}

impl RooflineKernels {
    pub(crate) fn new(device: &Device) -> Self {
        let limits = device.limits();
        let zero = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("roofline.zero"),
            size: VECTOR,
            usage: BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        Self {
            device: device.clone(),
            read: Variants::new(device, "roofline.read", true, include_str!("read.wgsl")),
            in_place: Variants::new(device, "roofline.in_place", false, include_str!("in_place.wgsl")),
            zero,
            // Offsets of windows have to be aligned, and a binding has fewer than 2^32 bytes.
            window: limits.max_storage_buffer_binding_size.min(1 << 31) / 4096 * 4096,
            grid: limits.max_compute_workgroups_per_dimension,
        }
    }

    /// Binds the kernel that reads to these buffers, whose sizes are multiples of 16.
    pub fn read(&self, buffers: &[Buffer]) -> BoundBuffers {
        BoundBuffers { read: true, windows: self.windows(&self.read, buffers) }
    }

    /// Binds the kernel that reads and writes back to these buffers, whose sizes are multiples of 16.
    pub(crate) fn in_place(&self, buffers: &[Buffer]) -> BoundBuffers {
        BoundBuffers { read: false, windows: self.windows(&self.in_place, buffers) }
    }

    fn windows(&self, variants: &Variants, buffers: &[Buffer]) -> Vec<(wgpu::BindGroup, u64)> {
        let bind = |buffer, offset, size| {
            let data = BufferBinding { buffer, offset, size: BufferSize::new(size) };
            let entries = [BindingResource::Buffer(data), self.zero.as_entire_binding()];
            let entries: Vec<_> = (0..)
                .zip(entries)
                .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
                .collect();
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &variants.layout,
                entries: &entries,
            })
        };
        let mut windows = Vec::new();
        for buffer in buffers {
            let mut offset = 0;
            while offset < buffer.size() {
                let size = self.window.min(buffer.size() - offset);
                windows.push((bind(buffer, offset, size), size / VECTOR));
                offset += size;
            }
        }
        windows
    }

    /// Encodes a kernel, with the number of steps that [`Gpu::best`](crate::device::Gpu::best) returns.
    pub fn encode(&self, buffers: &BoundBuffers, steps: usize, encoder: &mut CommandEncoder) {
        let variants = if buffers.read { &self.read } else { &self.in_place };
        let tile = u64::from(STEPS[steps] * 4 * WORKGROUP);
        let descriptor = wgpu::ComputePassDescriptor { label: Some("roofline"), timestamp_writes: None };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        pass.set_pipeline(&variants.pipelines[steps]);
        for (bind_group, vectors) in &buffers.windows {
            let workgroups = u32::try_from(vectors.div_ceil(tile)).expect("a window is small");
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(workgroups.min(self.grid), workgroups.div_ceil(self.grid), 1);
        }
    }
}

impl Variants {
    fn new(device: &Device, label: &str, read_only: bool, source: &str) -> Self {
        let label = Some(label);
        let entry = |binding, read_only| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label,
            entries: &[entry(0, read_only), entry(1, false)],
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = |steps| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label,
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &[("WORKGROUP", WORKGROUP.into()), ("STEPS", f64::from(steps))],
                    ..Default::default()
                },
                cache: None,
            })
        };
        Self { pipelines: STEPS.into_iter().map(pipeline).collect(), layout }
    }
}
