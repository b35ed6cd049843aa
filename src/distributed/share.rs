//! `Share`: what a plan measured of its shard.

use super::tile_norm::Partial;
use crate::extended::in_f32_precision;
use crate::record::NormMeasurement;
use crate::stats::TensorStats;
use crate::{ClipRecord, NormType};

/// What one plan measured of its shard: plain numbers, without a device or a buffer. [`ShardedClip::join`](super::ShardedClip::join)
/// takes the shares of a process.
///
/// The default is the share of a process without gradients, which adds nothing. The share of a process that could not measure is
/// the [`Error`](crate::Error) that prevented it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Share {
    /// The norm type, and whether there are statistics. `None` without gradients.
    pub(super) kind: Option<(NormType, bool)>,
    /// One for each record.
    pub(super) records: Vec<Measured>,
    /// The measured gradients, by the index of the gradient. Empty without [`tensor_stats`](crate::Clip::tensor_stats).
    pub(super) tensors: Vec<(usize, MeasuredTensor)>,
    /// The number of gradients with statistics; with a reproducible norm, those of all ranks.
    pub(super) gradients: usize,
    /// The partials of tiles, by their index among those of all ranks. Empty unless the norm is reproducible.
    pub(super) tiles: Vec<(usize, Partial)>,
}

/// What was measured of the gradients of one record, with their loss scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    pub(super) norm: f64,
    pub(super) max_magnitude: f32,
    /// The index in the list of gradients.
    pub(super) first_non_finite: Option<u32>,
    pub(super) unit: Unit,
}

/// What was measured of one gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MeasuredTensor {
    pub(super) measured: Measured,
    pub(super) non_finite: u32,
    pub(super) zeros: u32,
}

/// The gradients that share a record, or a single gradient: what a plan knows of them before it measures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Unit {
    /// The number of measured elements.
    pub(super) elements: u64,
    /// The group of the limit.
    pub(super) group: u32,
    /// Whether a gradient is measured.
    pub(super) measured: bool,
}

impl Measured {
    pub(super) fn of_record(record: &ClipRecord, unit: Unit) -> Self {
        Self {
            norm: record.norm(),
            max_magnitude: record.max_magnitude,
            // It fits: it was a u32 in the record.
            first_non_finite: record.first_non_finite().and_then(|index| u32::try_from(index).ok()),
            unit,
        }
    }

    pub(super) fn of_measurement(measured: &NormMeasurement, unit: Unit) -> Self {
        Self {
            // As precise as the norm of a record, so that a power of it is exact or nearly so.
            norm: in_f32_precision(measured.norm),
            max_magnitude: measured.max_magnitude,
            first_non_finite: measured.first_non_finite,
            unit,
        }
    }
}

impl MeasuredTensor {
    pub(super) fn new(stats: &TensorStats, unit: Unit) -> Self {
        let TensorStats { norm, max_magnitude, non_finite, zeros } = *stats;
        let measured = Measured { norm: norm.into(), max_magnitude, first_non_finite: None, unit };
        Self { measured, non_finite, zeros }
    }
}

/// Returns a unit of one gradient. Its elements count only if they are measured.
pub(super) fn unit(elements: u64, group: usize, measured: bool) -> Unit {
    let group = u32::try_from(group).expect("each group has a clip in memory");
    Unit { elements: if measured { elements } else { 0 }, group, measured }
}

/// Returns the units of records and of gradients.
pub(super) fn units(gradients: &[Unit], groups: usize, is_together: bool) -> Vec<Unit> {
    if !is_together {
        return gradients.to_vec();
    }
    let mut units: Vec<_> = (0..).take(groups).map(|group| Unit { group, ..Unit::default() }).collect();
    for gradient in gradients {
        let unit = &mut units[gradient.group as usize];
        unit.elements += gradient.elements;
        unit.measured |= gradient.measured;
    }
    units
}
