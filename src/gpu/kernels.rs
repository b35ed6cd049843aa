//! The table of shaders: which files make which kernel, and what it binds.

use super::layout::{Access, Manner};
use super::slots::{self, FIRST_SLOT, Mode};
use crate::{DType, NormType};

macro_rules! wgsl {
    ($($file:literal)+) => { concat!($(include_str!(concat!("../../shaders/", $file, ".wgsl")), "\n"),+) };
}

/// The elements of a type.
const fn elements(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => wgsl!("elements_f32"),
        DType::F16 => wgsl!("elements_f16"),
        DType::BF16 => wgsl!("elements_bf16"),
    }
}

/// The first where two elements share a word, else the second.
fn halves_or<T>(dtype: DType, halves: T, words: T) -> T {
    if dtype.size() == 2 { halves } else { words }
}

/// How an elementwise operation goes through a tile; through vectors of 16-bit elements in a way of its own.
fn each(manner: Manner, halves: &'static str) -> [&'static str; 2] {
    match manner.access {
        Access::Vectors => [halves_or(manner.dtype, halves, wgsl!("each_f32")), wgsl!("tile" "each_vector")],
        Access::Elements => [wgsl!("tile"), halves_or(manner.dtype, wgsl!("each_half"), wgsl!("each_word"))],
    }
}

/// The invocations of a workgroup where a tile is worked on: what every device allows.
pub const WORKGROUP_SIZE: u32 = 256;

/// The workgroup memory of the kernel that takes most: 20 bytes for each invocation.
pub(super) const WORKGROUP_BYTES: u32 = 20 * WORKGROUP_SIZE;

/// The invocations of a workgroup that joins very many partials, where a device allows so many.
pub(super) const WIDE_WORKGROUP_SIZE: u32 = 1024;

/// The workgroup memory of such a kernel: at most 16 bytes for each invocation.
pub(super) const WIDE_WORKGROUP_BYTES: u32 = 16 * WIDE_WORKGROUP_SIZE;

/// The invocations of a workgroup where a tile is the few elements of an edge.
const EDGE_WORKGROUP_SIZE: u32 = 32;

/// The bindings of the kernel that has most of those without slots: one that leaves records, of one bank of partials. With
/// several it has one more for each.
pub(super) const MOST_BINDINGS_WITHOUT_SLOTS: u32 = 5;

/// And how many of them are storage.
pub(super) const MOST_STORAGE_WITHOUT_SLOTS: u32 = 4;

/// A compute pipeline: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// Tiles to partials. Binds tiles, partials and the slots.
    Partials {
        /// What is found.
        finding: Finding,
        /// What the tiles have in common.
        manner: Manner,
        /// How many slots there are for gradients: one at least.
        slots: usize,
    },
    /// The partials of each segment to what is left of it. Binds partials, measure, segments, owners and what is left; with
    /// several banks of partials after that the place of each partial, and all banks but the first.
    Finalize {
        /// What was found.
        finding: Finding,
        /// What is left.
        leaves: Leaves,
        /// In how many buffers the partials are: one, or another power of two.
        banks: usize,
        /// Whether it has workgroups of 1024 invocations, which not every device allows: for many thousand partials.
        wide: bool,
    },
    /// A supplied norm to records.
    Supply,
    /// Records to such with limits relative to other norms.
    Relative,
    /// Records to such with limits that follow the norms of past steps.
    Adapt,
    /// Records to counts over the steps.
    Count,
    /// Tiles times the factor of a record; that of their segment, if there are several. Binds tiles, records and the slots.
    Scale {
        /// Whether there are several records.
        segmented: bool,
        /// What the tiles have in common.
        manner: Manner,
        /// How many slots there are for gradients: one at least.
        slots: usize,
    },
    /// Tiles to a range; that of their group, if there are several. Binds tiles, ranges and the slots.
    Clamp {
        /// Whether there are several ranges.
        segmented: bool,
        /// What the tiles have in common.
        manner: Manner,
        /// How many slots there are for gradients: one at least.
        slots: usize,
    },
}

/// What is left of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leaves {
    /// Its record.
    Record,
    /// The statistics of a segment that is one gradient.
    Stats,
}

/// What the norm pass finds in each tile: its `Partial`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Finding {
    norm: NormKind,
    /// Whether elements are counted besides.
    counted: bool,
}

impl Finding {
    /// The share of a tile in this norm; and how many of its elements are zero or not finite, if they are to be counted.
    #[must_use]
    pub fn of(norm_type: NormType, counted: bool) -> Self {
        let norm = NormKind::of(norm_type);
        // The plain kernels always count.
        Self { norm, counted: counted || matches!(norm, NormKind::Power(_)) }
    }

    /// The size of a `Partial`, in bytes.
    #[must_use]
    pub const fn partial_bytes(self) -> usize {
        match self {
            Self { norm: NormKind::Power(_), .. } => 20,
            Self { counted: true, .. } => 16,
            Self { counted: false, .. } => 8,
        }
    }

    /// Whether the norm pass reads vectors where it may. The plain kernels, for any p, read elements; and theirs alone have a use
    /// for the owners of partials where statistics are left.
    #[must_use]
    pub fn reads_vectors(self) -> bool {
        self.power().is_none()
    }

    /// The snippets of its partials and of the norm.
    const fn files(self) -> [&'static str; 2] {
        let partials = match self {
            Self { norm: NormKind::Power(_), .. } => wgsl!("counts"),
            Self { counted: true, .. } => wgsl!("counts" "partial_counted"),
            Self { counted: false, .. } => wgsl!("counts" "partial"),
        };
        let norm = match self.norm {
            NormKind::L1 => wgsl!("norm_l1"),
            NormKind::L2 => wgsl!("norm_l2"),
            NormKind::Inf => wgsl!("norm_inf"),
            NormKind::Power(_) => wgsl!("norm_power"),
        };
        [partials, norm]
    }

    /// The p that its kernels are told, if they are the plain ones.
    fn power(self) -> Option<f64> {
        match self.norm {
            // -∞ is no constant.
            NormKind::Power(p) => Some(f64::from(f32::from_bits(p).max(f32::MIN))),
            NormKind::L1 | NormKind::L2 | NormKind::Inf => None,
        }
    }
}

/// A norm as far as the shaders tell one from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum NormKind {
    L1,
    L2,
    Inf,
    /// The bits of p.
    Power(u32),
}

impl NormKind {
    fn of(norm_type: NormType) -> Self {
        match norm_type {
            NormType::L1 => Self::L1,
            NormType::L2 => Self::L2,
            NormType::Inf => Self::Inf,
            NormType::P(p) => Self::Power(p.to_bits()),
        }
    }
}

impl Kernel {
    /// The name of its stage, for labels.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Partials { .. } => "gradclip.partials",
            Self::Finalize { .. } => "gradclip.finalize",
            Self::Supply => "gradclip.supply",
            Self::Relative => "gradclip.relative",
            Self::Adapt => "gradclip.adapt",
            Self::Count => "gradclip.count",
            Self::Scale { .. } => "gradclip.scale",
            Self::Clamp { .. } => "gradclip.clamp",
        }
    }

    /// Its whole text: the files that it is made of, and the slots.
    #[must_use]
    pub fn source(self) -> String {
        const COMMON: &str = wgsl!("workgroup" "float_bits" "exact");
        let files = match self {
            Self::Partials { finding, manner, .. } => {
                let [partials, norm] = finding.files();
                let first = [elements(manner.dtype), wgsl!("tile" "found"), partials, norm];
                let then = if finding.reads_vectors() {
                    [
                        if finding.counted { wgsl!("tally_counted") } else { wgsl!("tally") },
                        halves_or(manner.dtype, wgsl!("sum_halves"), wgsl!("sum_f32")),
                        match manner.access {
                            Access::Vectors => wgsl!("access_vectors"),
                            Access::Elements => wgsl!("access_words"),
                        },
                        wgsl!("reduce_workgroup" "partials"),
                    ]
                } else {
                    ["", "", "", wgsl!("reduce_workgroup" "partials_power")]
                };
                first.into_iter().chain(then).collect()
            }
            Self::Finalize { finding, leaves, .. } => {
                let [partials, norm] = finding.files();
                vec![
                    partials,
                    wgsl!("found"),
                    norm,
                    wgsl!("segment"),
                    match leaves {
                        Leaves::Record => wgsl!("record" "conclude" "leave_record"),
                        Leaves::Stats => wgsl!("tensor_stats" "leave_stats"),
                    },
                    wgsl!("reduce_workgroup"),
                    if finding.reads_vectors() { wgsl!("finalize") } else { wgsl!("finalize_power") },
                ]
            }
            Self::Supply => vec![wgsl!("found" "segment" "record" "conclude" "supply" "per_invocation")],
            Self::Relative => vec![wgsl!("found" "segment" "record" "conclude" "relative" "per_invocation")],
            Self::Adapt => vec![wgsl!("found" "segment" "record" "conclude" "adapt" "per_invocation")],
            Self::Count => vec![wgsl!("record" "count" "per_invocation")],
            Self::Scale { manner, .. } => {
                [&[wgsl!("record" "scale")][..], &each(manner, wgsl!("scale_halves"))].concat()
            }
            Self::Clamp { manner, .. } => {
                [&[wgsl!("clamp")][..], &each(manner, wgsl!("clamp_halves"))].concat()
            }
        };
        let elementwise = match self {
            Self::Scale { manner, .. } | Self::Clamp { manner, .. } => elements(manner.dtype),
            _ => "",
        };
        let generated = match (self, self.slots()) {
            (Self::Finalize { banks, .. }, _) => slots::declare_banks(banks),
            (_, Some((slots, mode))) => slots::declare(slots, mode),
            _ => String::new(),
        };
        [COMMON, elementwise, &files.concat(), &generated].concat()
    }

    fn slots(self) -> Option<(usize, Mode)> {
        match self {
            Self::Finalize { .. } | Self::Supply | Self::Relative | Self::Adapt | Self::Count => None,
            Self::Partials { manner: Manner { access: Access::Vectors, .. }, slots, .. } => {
                Some((slots, Mode::ReadVectors))
            }
            Self::Partials { slots, .. } => Some((slots, Mode::ReadWords)),
            Self::Scale { manner, slots, .. } | Self::Clamp { manner, slots, .. } => Some((
                slots,
                match manner.access {
                    Access::Vectors => Mode::WriteVectors,
                    Access::Elements => halves_or(manner.dtype, Mode::Atomics, Mode::WriteWords),
                },
            )),
        }
    }

    /// The numbers that its shader leaves to Rust: `override`s without a value.
    #[must_use]
    pub fn constants(self) -> Vec<(&'static str, f64)> {
        let size = match self {
            Self::Scale { manner, .. } | Self::Clamp { manner, .. } if manner.access == Access::Elements => {
                EDGE_WORKGROUP_SIZE
            }
            Self::Finalize { wide: true, .. } => WIDE_WORKGROUP_SIZE,
            _ => WORKGROUP_SIZE,
        };
        let mut constants = vec![("WORKGROUP_SIZE", f64::from(size))];
        match self {
            Self::Partials { finding, .. } | Self::Finalize { finding, .. } => {
                constants.extend(finding.power().map(|p| ("POWER", p)));
            }
            Self::Scale { segmented, .. } | Self::Clamp { segmented, .. } => {
                constants.push(("SEGMENTED", f64::from(u8::from(segmented))));
            }
            _ => {}
        }
        constants
    }

    /// What it binds, in the order of the bindings.
    fn bindings(self) -> Vec<wgpu::BufferBindingType> {
        use wgpu::BufferBindingType::{Storage, Uniform};
        const READ: wgpu::BufferBindingType = Storage { read_only: true };
        const WRITE: wgpu::BufferBindingType = Storage { read_only: false };
        let (mut bindings, slots) = match self {
            Self::Partials { slots, .. } => (vec![READ, WRITE], vec![READ; slots]),
            Self::Finalize { banks, .. } => {
                let others = if banks > 1 { banks } else { 0 };
                ([&[READ, Uniform, READ, READ, WRITE], &vec![READ; others][..]].concat(), Vec::new())
            }
            Self::Supply | Self::Relative => (vec![READ, Uniform, READ, READ, WRITE], Vec::new()),
            Self::Adapt => (vec![WRITE, Uniform, READ, READ, WRITE], Vec::new()),
            Self::Count => (vec![READ, WRITE], Vec::new()),
            Self::Scale { slots, .. } | Self::Clamp { slots, .. } => (vec![READ, READ], vec![WRITE; slots]),
        };
        debug_assert!(slots.is_empty() || bindings.len() == FIRST_SLOT as usize, "slots follow the others");
        bindings.extend(slots);
        bindings
    }

    /// Compiles it.
    pub(super) fn compile(self, device: &wgpu::Device, cache: Option<&wgpu::PipelineCache>) -> Compiled {
        let label = Some(self.label());
        // Set for slots only: wgpu then checks their sizes once per plan, not at every dispatch.
        let least = self.slots().and_then(|(_, mode)| wgpu::BufferSize::new(mode.element_bytes()));
        let entries: Vec<_> = (0..)
            .zip(self.bindings())
            .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty,
                    has_dynamic_offset: false,
                    min_binding_size: least.filter(|_| binding >= FIRST_SLOT),
                },
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
            source: wgpu::ShaderSource::Wgsl(self.source().into()),
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
            cache,
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
