//! The kernels as data: the stages, their bindings, structs and constants, and the WGSL of each. The GPU path reads it, and so
//! does any package that launches the kernels without wgpu: `gradclip-burn` does. Code that clips wgpu buffers does not need this module.
//!
//! A [`Kernel`] names a stage and its variant. [`Kernel::source`] is its text, for one [`Dialect`]; [`Kernel::bindings`] is
//! what a launch binds, in order; [`tables`] has the structs in the bound buffers. All of it may change with any minor version.
//!
//! ```
//! use gradclip::kernels::{Alignment, Buffer, Dialect, Kernel, Reduction, Slots, TileFormat};
//! use gradclip::{DType, NormType};
//!
//! let format = TileFormat { alignment: Alignment::Vector, dtype: DType::BF16 };
//! let kernel = Kernel::Partials { reduction: Reduction::new(NormType::L2, false), format, slots: Slots::Separate(3) };
//! assert!(kernel.source(Dialect::WebGpu).contains("@compute"));
//! assert_eq!(kernel.pipeline_constants(), [("WORKGROUP_SIZE", 256.0)]);
//! assert_eq!(kernel.bindings()[1].buffer, Buffer::Partials);
//! ```

mod binding;
#[cfg(any(test, target_family = "wasm"))]
mod compact;
mod dialect;
mod producer;
pub(crate) mod slots;
mod snippet;
pub mod tables;
#[cfg(test)]
mod tests;

pub use binding::{Binding, BindingType, Buffer};
pub use dialect::Dialect;
pub use producer::Producer;
pub use slots::{FIRST_SLOT, Slots, slot_count};

use dialect::Constant;
use slots::SlotAccess;
use snippet::Snippet;

use crate::{DType, NormType};

/// The size of a vector that a kernel loads at once, in bytes.
pub const VECTOR_BYTES: u64 = 16;

/// The invocations of a workgroup that works on a tile or a segment. Every device allows it.
pub const WORKGROUP_SIZE: u32 = 256;

/// The invocations of a workgroup that reduces many partials, if a device allows it.
pub const WIDE_WORKGROUP_SIZE: u32 = 1024;

/// The most tiles of [`Kernel::SmallClip`]. Its single workgroup works on them in turn.
///
/// On an H100, each of the two dispatches that it saves costs about 2 µs, and 3 to 7 µs where a barrier separates them: 4 to 14 µs
/// in all. A tile of 4096 elements of f32 is one block of 16 KiB, whose loads are in flight together. So it costs about one
/// latency of memory and a tree of 8 barriers to measure, and one latency to scale: 1 to 2 µs. In a dispatch of several
/// workgroups the tiles overlap, so three more tiles cost 3 to 6 µs. These are estimates from the costs of dispatches, not
/// measurements of this kernel.
pub const SMALL_CLIP_TILES: u32 = 4;

/// The invocations of a workgroup whose tile is one of a gradient's edges: a few elements.
const EDGE_WORKGROUP_SIZE: u32 = 32;

/// The largest workgroup memory of a kernel that is not wide: 20 bytes for each invocation.
pub(crate) const WORKGROUP_BYTES: u32 = 20 * WORKGROUP_SIZE;

/// The largest workgroup memory of a wide kernel: 16 bytes for each invocation.
pub(crate) const WIDE_WORKGROUP_BYTES: u32 = 16 * WIDE_WORKGROUP_SIZE;

/// The most bindings of a kernel without slots and with one bank of partials.
pub(crate) const MAX_BINDINGS_WITHOUT_SLOTS: u32 = 5;

/// The most of them that are storage buffers.
pub(crate) const MAX_STORAGE_WITHOUT_SLOTS: u32 = 4;

/// A stage in one of its variants: one compute pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// Reduces each tile to a partial. One workgroup for each tile.
    Partials {
        /// The reduction.
        reduction: Reduction,
        /// The format of the tiles.
        format: TileFormat,
        /// The slots for gradients.
        slots: Slots,
    },
    /// Reduces each column of each block of a gradient to a partial. One workgroup for each block.
    PartialsColumns {
        /// The reduction.
        reduction: Reduction,
        /// The type of the elements.
        dtype: DType,
        /// The slots for gradients.
        slots: Slots,
    },
    /// Reduces the partials of each segment and writes its output. One workgroup for each segment.
    Finalize {
        /// The reduction that made the partials.
        reduction: Reduction,
        /// The output.
        output: Output,
        /// The number of buffers that hold partials: a power of two.
        banks: usize,
        /// Whether workgroups have [`WIDE_WORKGROUP_SIZE`] invocations, for thousands of partials in one segment.
        wide: bool,
        /// Whether the partials are reset, so that one that is not written again before the next launch is missing then.
        resets: bool,
    },
    /// Makes records from a supplied norm. One invocation for each segment, as for the next two.
    SuppliedNorm,
    /// Computes coefficients again with limits relative to parameter norms: adaptive gradient clipping.
    Agc,
    /// Computes coefficients again with limits that follow past norms.
    ZClip,
    /// Computes coefficients again with limits that are percentiles of the last norms. One workgroup for each segment.
    AutoClip,
    /// Applies the rules that keep state: skips steps, counts them, and updates a dynamic loss scale. One workgroup with a dynamic
    /// loss scale; otherwise one invocation for each record.
    Conclude,
    /// Copies norms and factors from records to arrays of f32, after a stage that changes the records. One invocation for each
    /// record.
    NormsAndFactors,
    /// Multiplies the elements of each tile by the factor of a record. One workgroup for each tile.
    Scale {
        /// Whether tiles have different records. If not, record 0 applies to all of them.
        segmented: bool,
        /// The format of the tiles.
        format: TileFormat,
        /// The slots for gradients.
        slots: Slots,
    },
    /// Multiplies each element by the factor of the record of its column. One workgroup for each tile.
    ScaleColumns {
        /// The format of the tiles.
        format: TileFormat,
        /// The slots for gradients.
        slots: Slots,
    },
    /// Clamps the elements of each tile. One workgroup for each tile.
    Clamp {
        /// Whether tiles have different bounds. If not, bounds 0 apply to all of them.
        segmented: bool,
        /// The format of the tiles.
        format: TileFormat,
        /// The slots for gradients.
        slots: Slots,
    },
    /// [`Partials`](Self::Partials), [`Finalize`](Self::Finalize) and [`Scale`](Self::Scale) for one segment of at most [`SMALL_CLIP_TILES`]
    /// tiles. One workgroup. General p and 16-bit elements that are not in whole vectors have no such kernel.
    SmallClip {
        /// The reduction.
        reduction: Reduction,
        /// The output: [`Output::Record`] or [`Output::RecordAndState`].
        output: Output,
        /// The format of the tiles.
        format: TileFormat,
        /// The slots for gradients.
        slots: Slots,
    },
    /// Removes a loss scale from the elements of each tile, and clamps them. One workgroup for each tile.
    UnscaleClamp {
        /// Whether tiles have different bounds. If not, bounds 0 apply to all of them.
        segmented: bool,
        /// The format of the tiles.
        format: TileFormat,
        /// The slots for gradients.
        slots: Slots,
    },
}

/// The format of the tiles of one dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TileFormat {
    /// The alignment of the tiles.
    pub alignment: Alignment,
    /// The type of the elements.
    pub dtype: DType,
}

/// The alignment of a tile in its buffer, which decides how it is loaded and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alignment {
    /// The tile starts at a multiple of 16 bytes and is made of whole vectors of 16 bytes: one vector for each load.
    Vector,
    /// The tile starts at any element and has any length: one element for each load.
    Element,
}

/// The output of [`Kernel::Finalize`] for each segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Output {
    /// A [`ClipRecord`](crate::ClipRecord).
    Record,
    /// A `ClipRecord`, and its norm and its factor in arrays of f32.
    RecordAndFactor,
    /// The only `ClipRecord`, concluded as by [`Kernel::Conclude`].
    RecordAndState,
    /// The [`TensorStats`](crate::TensorStats) of a segment that is one gradient.
    TensorStats,
}

impl Output {
    const fn snippet(self) -> &'static str {
        match self {
            Self::Record => "outputs/record",
            Self::RecordAndFactor => "outputs/record_and_factor",
            Self::RecordAndState => "outputs/record_and_state",
            Self::TensorStats => "outputs/tensor_stats",
        }
    }
}

/// A norm as a reduction: what the norm pass computes from each tile, its partial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reduction {
    norm: Norm,
    /// Whether elements that are zero or not finite are counted.
    counted: bool,
}

/// A norm, as far as the shaders distinguish them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Norm {
    L1,
    L2,
    Inf,
    /// Any other p, by its bits.
    Power(u32),
}

impl Reduction {
    /// Returns the reduction of a norm. `counted` adds counts of elements that are zero or not finite, which
    /// [`Output::TensorStats`] needs.
    #[must_use]
    pub fn new(norm_type: NormType, counted: bool) -> Self {
        let norm = match norm_type {
            NormType::L1 => Norm::L1,
            NormType::L2 => Norm::L2,
            NormType::Inf => Norm::Inf,
            NormType::P(p) => Norm::Power(p.to_bits()),
        };
        // The kernels of general p always count.
        Self { norm, counted: counted || matches!(norm, Norm::Power(_)) }
    }

    /// Returns the size of a partial, in bytes.
    #[must_use]
    pub const fn partial_bytes(self) -> usize {
        match self {
            Self { norm: Norm::Power(_), .. } => 20,
            Self { counted: true, .. } => 16,
            Self { counted: false, .. } => 8,
        }
    }

    /// Returns whether the reduction has kernels that load vectors, and wide kernels. General p has neither: its launches must use
    /// [`Alignment::Element`].
    #[must_use]
    pub const fn loads_vectors(self) -> bool {
        !matches!(self.norm, Norm::Power(_))
    }

    /// Returns whether there is code to compute partials in another kernel.
    pub(crate) const fn has_producer(self) -> bool {
        self.loads_vectors()
    }

    const fn norm_snippet(self) -> &'static str {
        match self.norm {
            Norm::L1 => "norms/l1",
            Norm::L2 => "norms/l2",
            Norm::Inf => "norms/inf",
            Norm::Power(_) => "norms/power",
        }
    }

    const fn partials_snippet(self) -> &'static str {
        match self {
            Self { norm: Norm::Power(_), .. } => "partials/power",
            Self { counted: true, .. } => "partials/counted",
            Self { counted: false, .. } => "partials/plain",
        }
    }

    /// The value of POWER.
    fn power(self) -> Option<f64> {
        match self.norm {
            // WGSL has no infinite constants.
            Norm::Power(p) => Some(f64::from(f32::from_bits(p).max(f32::MIN))),
            Norm::L1 | Norm::L2 | Norm::Inf => None,
        }
    }
}

impl Kernel {
    /// Returns the label for its pipeline and bind groups.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Partials { .. } => "gradclip.partials",
            Self::PartialsColumns { .. } => "gradclip.partials_columns",
            Self::Finalize { .. } => "gradclip.finalize",
            Self::SuppliedNorm => "gradclip.supplied_norm",
            Self::Agc => "gradclip.agc",
            Self::ZClip => "gradclip.z_clip",
            Self::AutoClip => "gradclip.auto_clip",
            Self::Conclude => "gradclip.conclude",
            Self::NormsAndFactors => "gradclip.norms_and_factors",
            Self::Scale { .. } => "gradclip.scale",
            Self::ScaleColumns { .. } => "gradclip.scale_columns",
            Self::Clamp { .. } => "gradclip.clamp",
            Self::SmallClip { .. } => "gradclip.small_clip",
            Self::UnscaleClamp { .. } => "gradclip.unscale_clamp",
        }
    }

    /// Returns the WGSL text, with the entry point `main`.
    #[must_use]
    pub fn source(self, dialect: Dialect) -> String {
        let snippets = self.snippets();
        let mut text = self.slots().map_or("", |(slots, _)| slots.directive()).to_owned();
        for constant in self.constants(&snippets, dialect) {
            text.push_str(&dialect.declare_constant(&constant));
        }
        for (binding, index) in self.bindings_of(&snippets).into_iter().zip(0..) {
            text.push_str(&dialect.declare_binding(index, binding.ty, &self.variable(binding.buffer)));
        }
        for snippet in snippets {
            text.push('\n');
            text.push_str(snippet.text);
        }
        if let Some((slots, access)) = self.slots() {
            text.push_str(&slots::functions(slots, access));
        }
        if let Self::Finalize { banks, resets, .. } = self {
            text.push_str(&slots::bank_function(banks));
            text.push_str(&slots::reset_function(banks, resets));
        }
        text
    }

    /// Returns what a launch binds; the index is the number of the binding, in group 0.
    ///
    /// A binding may be an array of buffers: see [`Buffer::elements`].
    #[must_use]
    pub fn bindings(self) -> Vec<Binding> {
        self.bindings_of(&self.snippets())
    }

    /// Returns the pipeline-overridable constants that [`Dialect::WebGpu`] needs, with their values.
    #[must_use]
    pub fn pipeline_constants(self) -> Vec<(&'static str, f64)> {
        let constants = self.constants(&self.snippets(), Dialect::WebGpu);
        constants.iter().filter_map(Constant::number).collect()
    }

    /// Returns the number of invocations in a workgroup.
    #[must_use]
    pub fn workgroup_size(self, dialect: Dialect) -> u32 {
        match self {
            Self::Finalize { wide: true, .. } => WIDE_WORKGROUP_SIZE,
            Self::Scale { format, .. }
            | Self::ScaleColumns { format, .. }
            | Self::Clamp { format, .. }
            | Self::UnscaleClamp { format, .. }
                if format.alignment == Alignment::Element && dialect.unaligned_tiles_are_edges() =>
            {
                EDGE_WORKGROUP_SIZE
            }
            _ => WORKGROUP_SIZE,
        }
    }

    /// The stage, followed by the snippets that it requires, directly or not.
    fn snippets(self) -> Vec<&'static Snippet> {
        snippet::resolve(Snippet::at(self.stage()), |folder| self.chosen(folder))
    }

    /// The file of the stage.
    const fn stage(self) -> &'static str {
        match self {
            Self::Partials { reduction, .. } if reduction.loads_vectors() => "stages/partials",
            Self::Partials { .. } => "stages/partials_power",
            Self::PartialsColumns { reduction, .. } if reduction.loads_vectors() => "stages/partials_columns",
            Self::PartialsColumns { .. } => "stages/partials_columns_power",
            Self::Finalize { reduction, .. } if reduction.loads_vectors() => "stages/finalize",
            Self::Finalize { .. } => "stages/finalize_power",
            Self::SuppliedNorm => "stages/supplied_norm",
            Self::Agc => "stages/agc",
            Self::ZClip => "stages/z_clip",
            Self::AutoClip => "stages/auto_clip",
            Self::Conclude => "stages/conclude",
            Self::NormsAndFactors => "stages/norms_and_factors",
            Self::Scale { .. } => "stages/scale",
            Self::ScaleColumns { .. } => "stages/scale_columns",
            Self::Clamp { .. } => "stages/clamp",
            Self::SmallClip { .. } => "stages/small_clip",
            Self::UnscaleClamp { .. } => "stages/unscale_clamp",
        }
    }

    /// The file that this variant chooses in a folder of alternatives; `None` for other names, and for the generated `banks`.
    fn chosen(self, folder: &str) -> Option<&'static str> {
        let file = match folder {
            "elements" => elements(self.format()?.dtype),
            "loads" => loads(self.format()?),
            "maps" => map(self.format()?),
            "column_maps" => column_map(self.format()?),
            "norms" => self.reduction()?.norm_snippet(),
            "partials" => self.reduction()?.partials_snippet(),
            "outputs" => match self {
                Self::Finalize { output, .. } | Self::SmallClip { output, .. } => output.snippet(),
                _ => return None,
            },
            "banks" if matches!(self, Self::SmallClip { .. }) => "banks/workgroup",
            _ => return None,
        };
        Some(file)
    }

    /// The format of its tiles. A block of columns is loaded by elements.
    const fn format(self) -> Option<TileFormat> {
        match self {
            Self::Partials { format, .. }
            | Self::Scale { format, .. }
            | Self::ScaleColumns { format, .. }
            | Self::Clamp { format, .. }
            | Self::SmallClip { format, .. }
            | Self::UnscaleClamp { format, .. } => Some(format),
            Self::PartialsColumns { dtype, .. } => Some(TileFormat { alignment: Alignment::Element, dtype }),
            Self::Finalize { .. }
            | Self::SuppliedNorm
            | Self::Agc
            | Self::ZClip
            | Self::AutoClip
            | Self::Conclude
            | Self::NormsAndFactors => None,
        }
    }

    /// The reduction that it computes or finalizes.
    const fn reduction(self) -> Option<Reduction> {
        match self {
            Self::Partials { reduction, .. }
            | Self::PartialsColumns { reduction, .. }
            | Self::Finalize { reduction, .. }
            | Self::SmallClip { reduction, .. } => Some(reduction),
            _ => None,
        }
    }

    /// The constants that the snippets use.
    fn constants(self, snippets: &[&Snippet], dialect: Dialect) -> Vec<Constant> {
        let used = snippet::names(snippets, Snippet::constants);
        let mut constants = vec![
            Constant::f32("POWER", self.reduction().and_then(Reduction::power).unwrap_or_default()),
            Constant::u32("SEGMENTED", u32::from(self.is_segmented())),
            Constant::u32("SMALL_CLIP_TILES", SMALL_CLIP_TILES),
            Constant::derived("STRIDE", "ELEMENTS_PER_VECTOR * WORKGROUP_SIZE"),
            Constant::derived("TURNS", "WORKGROUP_SIZE / COLUMNS"),
            Constant::u32("WORKGROUP_SIZE", self.workgroup_size(dialect)),
        ];
        constants.retain(|constant| used.contains(&constant.name));
        constants
    }

    const fn is_segmented(self) -> bool {
        matches!(
            self,
            Self::Scale { segmented: true, .. }
                | Self::Clamp { segmented: true, .. }
                | Self::UnscaleClamp { segmented: true, .. }
        )
    }

    /// The bindings: the buffers that the snippets bind, then those that generated functions use, in the order of [`Buffer`].
    fn bindings_of(self, snippets: &[&Snippet]) -> Vec<Binding> {
        let used = snippet::names(snippets, Snippet::binds);
        let mut bindings = Vec::new();
        let mut bind = |buffer| bindings.push(Binding { buffer, ty: self.binding_type(buffer) });
        for &(name, buffer, _) in &binding::NAMED {
            if used.contains(&name) {
                bind(buffer);
            }
        }
        if let Self::Finalize { banks, .. } = self {
            if banks > 1 {
                bind(Buffer::PartialLocations);
            }
            (0..banks).for_each(|bank| bind(Buffer::Bank(bank)));
        }
        match self.slots() {
            Some((Slots::Separate(count), _)) => (0..count).for_each(|slot| bind(Buffer::Slot(slot))),
            Some((Slots::Array(count), _)) => bind(Buffer::Slots(count)),
            None => {}
        }
        bindings
    }

    /// How the kernel uses a buffer.
    const fn binding_type(self, buffer: Buffer) -> BindingType {
        match (buffer, self) {
            (
                Buffer::NormParams,
                Self::Conclude
                | Self::Finalize { output: Output::RecordAndState, .. }
                | Self::SmallClip { output: Output::RecordAndState, .. },
            )
            | (Buffer::Bank(_), Self::Finalize { resets: true, .. }) => BindingType::ReadWrite,
            (Buffer::NormParams, _) => BindingType::Uniform,
            (Buffer::Records, Self::Scale { .. } | Self::ScaleColumns { .. } | Self::NormsAndFactors)
            | (Buffer::Slot(_) | Buffer::Slots(_), Self::Partials { .. } | Self::PartialsColumns { .. }) => {
                BindingType::Read
            }
            (
                Buffer::Partials
                | Buffer::Records
                | Buffer::Norms
                | Buffer::Factors
                | Buffer::TensorStats
                | Buffer::Histories
                | Buffer::NormWindows
                | Buffer::StepCounts
                | Buffer::Slot(_)
                | Buffer::Slots(_),
                _,
            ) => BindingType::ReadWrite,
            _ => BindingType::Read,
        }
    }

    /// The WGSL variable of a buffer: its name and its type.
    fn variable(self, buffer: Buffer) -> (String, String) {
        let of_slot = self.slots().map_or("", |(_, access)| access.element_type());
        let ty = match buffer {
            Buffer::Slot(_) => of_slot.to_owned(),
            Buffer::Slots(count) => format!("binding_array<Window, {count}>"),
            _ => buffer.element_type().to_owned(),
        };
        (buffer.name(), ty)
    }

    /// The slots and their access, if the kernel has slots.
    pub(crate) fn slots(self) -> Option<(Slots, SlotAccess)> {
        match self {
            Self::Partials { format, slots, .. } => Some((slots, SlotAccess::reading(format.alignment))),
            Self::PartialsColumns { slots, .. } => Some((slots, SlotAccess::reading(Alignment::Element))),
            Self::Scale { format, slots, .. }
            | Self::ScaleColumns { format, slots }
            | Self::Clamp { format, slots, .. }
            | Self::SmallClip { format, slots, .. }
            | Self::UnscaleClamp { format, slots, .. } => Some((slots, SlotAccess::writing(format))),
            Self::Finalize { .. }
            | Self::SuppliedNorm
            | Self::Agc
            | Self::ZClip
            | Self::AutoClip
            | Self::Conclude
            | Self::NormsAndFactors => None,
        }
    }
}

const fn elements(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "elements/f32",
        DType::F16 => "elements/f16",
        DType::BF16 => "elements/bf16",
    }
}

const fn loads(format: TileFormat) -> &'static str {
    match format.alignment {
        Alignment::Vector => "loads/aligned",
        Alignment::Element => "loads/unaligned",
    }
}

const fn map(format: TileFormat) -> &'static str {
    match (format.alignment, format.dtype) {
        (Alignment::Vector, _) => "maps/aligned",
        (Alignment::Element, DType::F32) => "maps/unaligned_words",
        (Alignment::Element, DType::F16 | DType::BF16) => "maps/unaligned_halves",
    }
}

const fn column_map(format: TileFormat) -> &'static str {
    match (format.alignment, format.dtype) {
        (Alignment::Vector, _) => "column_maps/aligned",
        (Alignment::Element, DType::F32) => "column_maps/unaligned_words",
        (Alignment::Element, DType::F16 | DType::BF16) => "column_maps/unaligned_halves",
    }
}
