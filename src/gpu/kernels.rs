//! The table of shaders: which files make which kernel, and what it binds.

use std::borrow::Cow;

use super::layout::Access;
use super::slots::{self, FIRST_SLOT};

/// The invocations of a workgroup where a tile is worked on: what every device allows.
pub(super) const WORKGROUP_SIZE: u32 = 256;

/// The workgroup memory of the kernel that takes most: a `Partial` for each invocation.
pub(super) const WORKGROUP_BYTES: u32 = 8 * WORKGROUP_SIZE;

/// The same where a tile is the up to three words of an edge.
const EDGE_WORKGROUP_SIZE: u32 = 32;

/// A compute pipeline: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    /// Tiles to partials.
    Partials { access: Access, slots: usize },
    /// Partials to the record.
    Finalize,
    /// Tiles times the coefficient of the record.
    Scale { access: Access, slots: usize },
    /// Tiles to a range.
    Clamp { access: Access, slots: usize },
}

macro_rules! wgsl {
    ($($file:literal)+) => { concat!($(include_str!(concat!("../../shaders/", $file, ".wgsl")), "\n"),+) };
}

impl Kernel {
    /// The name of its stage, for labels.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Partials { .. } => "gradclip.partials",
            Self::Finalize => "gradclip.finalize",
            Self::Scale { .. } => "gradclip.scale",
            Self::Clamp { .. } => "gradclip.clamp",
        }
    }

    /// The files that it is made of.
    const fn files(self) -> &'static str {
        use Access::{Vectors, Words};
        match self {
            Self::Partials { access: Vectors, .. } => {
                wgsl!["workgroup" "tile" "float_bits" "norm_l2" "reduce_workgroup" "access_vectors" "partials"]
            }
            Self::Partials { access: Words, .. } => {
                wgsl!["workgroup" "tile" "float_bits" "norm_l2" "reduce_workgroup" "access_words" "partials"]
            }
            Self::Finalize => {
                wgsl!["workgroup" "float_bits" "norm_l2" "reduce_workgroup" "record" "finalize"]
            }
            Self::Scale { access: Vectors, .. } => {
                wgsl!["workgroup" "tile" "float_bits" "record" "scale" "each_vector"]
            }
            Self::Scale { access: Words, .. } => {
                wgsl!["workgroup" "tile" "float_bits" "record" "scale" "each_word"]
            }
            Self::Clamp { access: Vectors, .. } => {
                wgsl!["workgroup" "tile" "float_bits" "clamp" "each_vector"]
            }
            Self::Clamp { access: Words, .. } => wgsl!["workgroup" "tile" "float_bits" "clamp" "each_word"],
        }
    }

    /// Its whole text.
    pub(super) fn source(self) -> Cow<'static, str> {
        match self {
            Self::Finalize => self.files().into(),
            Self::Partials { access, slots } => {
                (self.files().to_owned() + &slots::declare(slots, access, false)).into()
            }
            Self::Scale { access, slots } | Self::Clamp { access, slots } => {
                (self.files().to_owned() + &slots::declare(slots, access, true)).into()
            }
        }
    }

    /// The numbers that its shader leaves to Rust.
    pub(super) const fn constants(self) -> [(&'static str, f64); 1] {
        use Access::Words;
        let size = match self {
            Self::Scale { access: Words, .. } | Self::Clamp { access: Words, .. } => EDGE_WORKGROUP_SIZE,
            _ => WORKGROUP_SIZE,
        };
        [("WORKGROUP_SIZE", size as f64)]
    }

    /// What it binds, in the order of the bindings.
    fn bindings(self) -> Vec<wgpu::BufferBindingType> {
        use wgpu::BufferBindingType::{Storage, Uniform};
        const READ: wgpu::BufferBindingType = Storage { read_only: true };
        const WRITE: wgpu::BufferBindingType = Storage { read_only: false };
        let (mut bindings, slots) = match self {
            Self::Partials { slots, .. } => (vec![READ, WRITE], vec![READ; slots]),
            Self::Finalize => (vec![READ, Uniform, WRITE], Vec::new()),
            Self::Scale { slots, .. } | Self::Clamp { slots, .. } => {
                (vec![READ, Uniform], vec![WRITE; slots])
            }
        };
        debug_assert!(slots.is_empty() || bindings.len() == FIRST_SLOT as usize, "slots follow the others");
        bindings.extend(slots);
        bindings
    }

    /// Compiles it.
    pub(super) fn compile(self, device: &wgpu::Device) -> Compiled {
        let label = Some(self.label());
        let entries: Vec<_> = (0..)
            .zip(self.bindings())
            .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            })
            .collect();
        let bind_group_layout =
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&bind_group_layout)],
            immediate_size: 0,
        });
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl(self.source()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &self.constants(),
                // Every invocation writes its place before any reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        log::debug!("compiled {self:?}");
        Compiled { label: self.label(), pipeline, bind_group_layout }
    }
}

/// A kernel on a device.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    pub(super) label: &'static str,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) bind_group_layout: wgpu::BindGroupLayout,
}

#[cfg(test)]
mod tests;
