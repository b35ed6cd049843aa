//! Updates of a plan between steps, as bytes for its buffers: limits, the loss scale, the supplied norm, and restored state.

use std::mem::offset_of;

use super::{Outcome, Plan};
use crate::kernels::tables::{NormParams, Segment};
use crate::loss_scale::{LossScale, LossScaleState};
use crate::operation::{
    check_max_norms, check_norm_histories, check_norm_windows, check_step_counts, inverse_scale,
};
use crate::stats::{NormHistory, NormWindow, StepCounts};
use crate::{AutoClip, ClipRecord, Error};

/// Bytes that a host writes into a buffer of the plan, after all previously submitted work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The place to write them to.
    pub place: Place,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A place in a buffer of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// An index into [`Plan::buffers`].
    pub buffer: usize,
    /// The offset in bytes.
    pub offset: u64,
}

impl Place {
    const fn start_of(buffer: usize) -> Self {
        Self { buffer, offset: 0 }
    }

    fn write(self, bytes: &[u8]) -> Write {
        Write { place: self, bytes: bytes.to_vec() }
    }
}

/// The offset of the inverse loss scale in `NormParams`.
const INVERSE_SCALE: u64 = offset_of!(NormParams, inverse_scale) as u64;

// The state of the loss scale comes first, followed by its inverse.
const _: () =
    assert!(offset_of!(NormParams, scale) == 0 && INVERSE_SCALE == size_of::<LossScaleState>() as u64);

impl Plan {
    /// Changes the limits; see [`ClipPlan::set_max_norms`](crate::ClipPlan::set_max_norms).
    ///
    /// # Errors
    ///
    /// [`Error::MaxNorm`], [`Error::LimitCount`] or [`Error::NeedsNorm`].
    pub fn set_max_norms(&self, max_norms: &[f32]) -> Result<Write, Error> {
        let outcome = self.by_norm("set_max_norms")?;
        check_max_norms(max_norms, outcome.groups)?;
        let mut table = outcome.table.clone();
        for (segment, limit) in table.iter_mut().zip(&outcome.limits) {
            segment.max_norm = limit.among(max_norms);
        }
        Ok(Place::start_of(outcome.segments).write(bytemuck::cast_slice(&table)))
    }

    /// Returns where the limit of a group is, an f32; see [`ClipPlan::copy_max_norm`](crate::ClipPlan::copy_max_norm).
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchGroup`], [`Error::NoGroupLimit`] or [`Error::NeedsNorm`].
    pub fn max_norm(&self, group: usize) -> Result<Place, Error> {
        let outcome = self.by_norm("copy_max_norm")?;
        if !outcome.together {
            return Err(Error::NoGroupLimit { what: "copy_max_norm" });
        }
        if group >= outcome.groups {
            return Err(Error::NoSuchGroup { given: group, groups: outcome.groups });
        }
        let offset = group * size_of::<Segment>() + offset_of!(Segment, max_norm);
        Ok(Place { buffer: outcome.segments, offset: offset as u64 })
    }

    /// Changes the loss scale; see [`ClipPlan::set_loss_scale`](crate::ClipPlan::set_loss_scale).
    ///
    /// # Errors
    ///
    /// [`Error::LossScale`], [`Error::NotEnabled`] or [`Error::DynamicLossScale`].
    pub fn set_loss_scale(&self, scale: f32) -> Result<Vec<Write>, Error> {
        let places = self.inverse_loss_scales("set_loss_scale")?;
        let inverse = inverse_scale(scale)?;
        Ok(places.into_iter().map(|place| place.write(&inverse.to_le_bytes())).collect())
    }

    /// Returns where the inverse of a fixed loss scale is, an f32. `what` names the calling method in errors.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`] or [`Error::DynamicLossScale`].
    pub fn inverse_loss_scales(&self, what: &'static str) -> Result<Vec<Place>, Error> {
        match (&self.outcome, self.inverse_scales) {
            (Some(Outcome { has_dynamic_scale: true, .. }), _) => Err(Error::DynamicLossScale { what }),
            (Some(outcome), _) => Ok(vec![Place { buffer: outcome.norm_params, offset: INVERSE_SCALE }]),
            (None, Some(buffers)) => Ok(buffers.map(Place::start_of).into()),
            (None, None) => Err(Error::NotEnabled { what: "loss scale", with: "loss_scale" }),
        }
    }

    /// Replaces the dynamic loss scale; see [`ClipPlan::set_dynamic_loss_scale`](crate::ClipPlan::set_dynamic_loss_scale).
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`].
    pub fn set_dynamic_loss_scale(&self, scale: LossScale) -> Result<Write, Error> {
        let buffer = self.buffer_of_loss_scale()?;
        let inverse = inverse_scale(scale.scale())?;
        let bytes = [bytemuck::bytes_of(&scale.state()), &inverse.to_le_bytes()].concat();
        Ok(Place::start_of(buffer).write(&bytes))
    }

    /// Supplies the norm; see [`ClipPlan::supply_norm`](crate::ClipPlan::supply_norm).
    ///
    /// # Errors
    ///
    /// [`Error::UnexpectedNorm`].
    pub fn supply_norm(&self, total_norm: f32) -> Result<Write, Error> {
        // One NaN bit pattern means that no norm was supplied.
        let total_norm = if total_norm.is_nan() { f32::NAN } else { total_norm };
        Ok(self.supplied_norm()?.write(&total_norm.to_le_bytes()))
    }

    /// Returns where the supplied norm is, an f32; see [`ClipPlan::copy_norm`](crate::ClipPlan::copy_norm).
    ///
    /// # Errors
    ///
    /// [`Error::UnexpectedNorm`].
    pub fn supplied_norm(&self) -> Result<Place, Error> {
        let supplied = self.outcome.as_ref().and_then(|outcome| outcome.supplied);
        supplied.map(Place::start_of).ok_or(Error::UnexpectedNorm)
    }

    /// Writes records that were computed elsewhere.
    pub(crate) fn set_records(&self, records: &[ClipRecord]) -> Result<Write, Error> {
        let outcome = self.by_norm("write_records")?;
        let needed = outcome.count;
        if records.len() != needed {
            return Err(Error::ShardCount { what: "records", given: records.len(), needed });
        }
        Ok(Place::start_of(outcome.records).write(bytemuck::cast_slice(records)))
    }

    /// Replaces the step counts; see [`ClipPlan::set_step_counts`](crate::ClipPlan::set_step_counts).
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`], [`Error::StateCount`] or [`Error::StepCounts`].
    pub fn set_step_counts(&self, counts: &[StepCounts]) -> Result<Write, Error> {
        let buffer = self.buffer_of_step_counts()?;
        check_step_counts(counts)?;
        self.check_state_count("step counts", counts.len())?;
        Ok(Place::start_of(buffer).write(bytemuck::cast_slice(counts)))
    }

    /// Restores the norm histories; see [`ClipPlan::set_histories`](crate::ClipPlan::set_histories).
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`], [`Error::StateCount`] or [`Error::NormHistory`].
    pub fn set_histories(&self, histories: &[NormHistory]) -> Result<Write, Error> {
        let buffer = self.buffer_of_histories()?;
        check_norm_histories(histories)?;
        self.check_state_count("norm histories", histories.len())?;
        Ok(Place::start_of(buffer).write(bytemuck::cast_slice(histories)))
    }

    /// Restores the norm windows; see [`ClipPlan::set_norm_windows`](crate::ClipPlan::set_norm_windows).
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`], [`Error::StateCount`] or [`Error::NormWindow`].
    pub fn set_norm_windows(&self, windows: &[NormWindow]) -> Result<Write, Error> {
        let (auto_clip, buffer) = self.auto_clip()?;
        check_norm_windows(windows, auto_clip)?;
        self.check_state_count("norm windows", windows.len())?;
        let words = auto_clip.device_words(windows);
        Ok(Place::start_of(buffer).write(bytemuck::cast_slice(&words)))
    }

    fn by_norm(&self, what: &'static str) -> Result<&Outcome, Error> {
        self.outcome.as_ref().ok_or(Error::NeedsNorm { what, clip: "a clip by value" })
    }

    pub(super) fn auto_clip(&self) -> Result<(AutoClip, usize), Error> {
        let windows = self.outcome.as_ref().and_then(|outcome| outcome.norm_windows);
        windows.ok_or(Error::NotEnabled { what: "norm windows", with: "auto_clip" })
    }

    /// Checks that there is one value for each record.
    fn check_state_count(&self, what: &'static str, given: usize) -> Result<(), Error> {
        let records = self.records();
        if given == records { Ok(()) } else { Err(Error::StateCount { what, given, records }) }
    }
}
