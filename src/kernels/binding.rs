//! What a kernel binds.

/// A binding of a [`Kernel`](super::Kernel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The buffer to bind.
    pub buffer: Buffer,
    /// How the kernel uses it.
    pub ty: BindingType,
}

/// How a kernel uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindingType {
    /// A storage buffer that the kernel reads.
    Read,
    /// A storage buffer that the kernel reads and writes.
    ReadWrite,
    /// A uniform buffer.
    Uniform,
}

/// A buffer that a kernel binds. The variants are in the order of the bindings: a kernel binds those that it uses, numbered
/// from 0 without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Buffer {
    /// [`Tile`](super::tables::Tile)s: one for each workgroup.
    Tiles,
    /// [`ColumnTile`](super::tables::ColumnTile)s: one for each workgroup.
    ColumnTiles,
    /// Partials to write.
    Partials,
    /// The norm that the caller supplies, an f32.
    SuppliedNorm,
    /// [`ClipRecord`](crate::ClipRecord)s of the parameters, one for each segment.
    ParameterRecords,
    /// [`NormHistory`](crate::NormHistory) of each segment.
    Histories,
    /// The windows of the last norms of each segment: [`NormWindow`](crate::NormWindow), as u32.
    NormWindows,
    /// One [`NormParams`](super::tables::NormParams).
    NormParams,
    /// [`Segment`](super::tables::Segment)s.
    Segments,
    /// For each partial, the index of the gradient that it belongs to, as u32.
    GradientOfPartial,
    /// [`ClipRecord`](crate::ClipRecord)s, one for each segment.
    Records,
    /// The norm of each segment, as f32.
    Norms,
    /// The factor of each segment, as f32.
    Factors,
    /// [`TensorStats`](crate::TensorStats) of each segment.
    TensorStats,
    /// [`StepCounts`](crate::StepCounts) of each record.
    StepCounts,
    /// [`Bounds`](super::tables::Bounds), one for each group.
    Bounds,
    /// [`UnscaledBounds`](super::tables::UnscaledBounds) of the groups.
    UnscaledBounds,
    /// For each partial, its location in the banks, as u32: `index_in_bank * banks + bank`. Bound only with several banks.
    PartialLocations,
    /// Partials to read: bank number `.0` of them.
    Bank(usize),
    /// A window of a gradient's buffer: slot number `.0`.
    Slot(usize),
    /// An array of `.0` windows: all slots.
    Slots(usize),
}

/// The buffers that a snippet can name, with their names and WGSL types, in the order of [`Buffer`].
pub(super) const NAMED: [(&str, Buffer, &str); 18] = [
    ("tiles", Buffer::Tiles, "array<Tile>"),
    ("column_tiles", Buffer::ColumnTiles, "array<ColumnTile>"),
    ("partials", Buffer::Partials, "array<Partial>"),
    ("supplied_norm", Buffer::SuppliedNorm, "array<u32>"),
    ("parameter_records", Buffer::ParameterRecords, "array<ClipRecord>"),
    ("histories", Buffer::Histories, "array<NormHistory>"),
    ("norm_windows", Buffer::NormWindows, "array<u32>"),
    ("norm_params", Buffer::NormParams, "NormParams"),
    ("segments", Buffer::Segments, "array<Segment>"),
    ("gradient_of_partial", Buffer::GradientOfPartial, "array<u32>"),
    ("records", Buffer::Records, "array<ClipRecord>"),
    ("norms", Buffer::Norms, "array<f32>"),
    ("factors", Buffer::Factors, "array<f32>"),
    ("tensor_stats", Buffer::TensorStats, "array<TensorStats>"),
    ("step_counts", Buffer::StepCounts, "array<StepCounts>"),
    ("bounds", Buffer::Bounds, "array<Bounds>"),
    ("unscaled_bounds", Buffer::UnscaledBounds, "UnscaledBounds"),
    ("partial_locations", Buffer::PartialLocations, "array<u32>"),
];

impl Buffer {
    /// Returns the buffers that its binding takes, in order: itself, or the elements of an array.
    pub fn elements(self) -> impl Iterator<Item = Self> {
        let array = if let Self::Slots(count) = self { Some(count) } else { None };
        (0..array.unwrap_or(1)).map(move |index| if array.is_some() { Self::Slot(index) } else { self })
    }

    /// The name of its WGSL variable.
    pub(super) fn name(self) -> String {
        match self {
            Self::Bank(bank) => format!("bank{bank}"),
            Self::Slot(slot) => format!("slot{slot}"),
            Self::Slots(_) => "slots".to_owned(),
            _ => NAMED.iter().find(|row| row.1 == self).map_or("", |row| row.0).to_owned(),
        }
    }

    /// The type of its WGSL variable; those of slots depend on the kernel.
    pub(super) fn element_type(self) -> &'static str {
        match self {
            Self::Bank(_) => "array<Partial>",
            _ => NAMED.iter().find(|row| row.1 == self).map_or("", |row| row.2),
        }
    }
}
