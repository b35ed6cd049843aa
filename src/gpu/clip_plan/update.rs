//! Updates of a plan between steps: limits, the loss scale, the supplied norm, and restored state.

use bytemuck::Pod;
use wgpu::{BufferUsages, CommandEncoder, Queue};

use super::{ClipPlan, LossScaleBuffers, Outcome};
use crate::gpu::error_scope::{CheckedDevice, is_destroyed, is_mapped};
use crate::gpu::read_back::Results;
use crate::kernels::tables::{NormParams, Segment};
use crate::loss_scale::{LossScale, LossScaleState};
use crate::operation::{
    check_max_norms, check_norm_histories, check_norm_windows, check_step_counts, inverse_scale,
};
use crate::stats::{NormHistory, NormWindow, StepCounts};
use crate::{ClipRecord, Error, panics};

impl ClipPlan {
    /// Changes the limits, one for each group, for every command buffer that is submitted after this call, whenever it was
    /// encoded. `queue` must be that of the clipper's device, here and in the methods below.
    ///
    /// # Errors
    ///
    /// [`Error::MaxNorm`] if a limit is negative or NaN; [`Error::LimitCount`] if the number of limits differs from that of the
    /// groups; [`Error::NeedsNorm`] for a clip by value; [`Error::ForeignQueue`] if the queue belongs to another device. If that other
    /// device has a handler for uncaptured errors, the handler receives wgpu's error instead, and this call returns `Ok`.
    pub fn set_max_norms(&self, queue: &Queue, max_norms: &[f32]) -> Result<(), Error> {
        let outcome = self.by_norm("set_max_norms")?;
        check_max_norms(max_norms, outcome.groups)?;
        let mut table = outcome.table.clone();
        for (segment, limit) in table.iter_mut().zip(&outcome.limits) {
            segment.max_norm = limit.among(max_norms);
        }
        outcome.write(queue, &outcome.segments, 0, bytemuck::cast_slice(&table))
    }

    /// Copies the limit of a group, an f32, from 4 bytes of your buffer at this point of the encoder. The value is not checked: a
    /// negative limit flips signs, and a NaN limit is handled by the policy for non-finite gradients.
    ///
    /// # Errors
    ///
    /// [`Error::CopySource`] or [`Error::BufferRejected`] if the bytes cannot be copied; [`Error::NoSuchGroup`] if there is no such group;
    /// [`Error::NoGroupLimit`] if each gradient is clipped by itself; [`Error::NeedsNorm`] for a clip by value.
    pub fn copy_max_norm(
        &self,
        encoder: &mut CommandEncoder,
        group: usize,
        source: &wgpu::Buffer,
        offset: u64,
    ) -> Result<(), Error> {
        let outcome = self.by_norm("copy_max_norm")?;
        if !outcome.together {
            return Err(Error::NoGroupLimit { what: "copy_max_norm" });
        }
        if group >= outcome.groups {
            return Err(Error::NoSuchGroup { given: group, groups: outcome.groups });
        }
        let at = group * size_of::<Segment>() + std::mem::offset_of!(Segment, max_norm);
        outcome.copy_number(encoder, source, offset, &outcome.segments, at as u64)
    }

    /// Changes the loss scale, as [`Clip::loss_scale`](crate::Clip::loss_scale), for every command buffer that is
    /// submitted after this call.
    ///
    /// # Errors
    ///
    /// [`Error::LossScale`] if `scale` or its inverse is not positive and finite; [`Error::NotEnabled`] for a clip by value without
    /// a loss scale; [`Error::DynamicLossScale`] if the plan updates its own scale; [`Error::ForeignQueue`] as for
    /// [`set_max_norms`](Self::set_max_norms).
    pub fn set_loss_scale(&self, queue: &Queue, scale: f32) -> Result<(), Error> {
        let (checked_device, targets) = self.inverse_scales("set_loss_scale")?;
        let inverse = inverse_scale(scale)?;
        targets.into_iter().try_for_each(|(buffer, offset)| {
            write(checked_device, queue, buffer, offset, &inverse.to_le_bytes())
        })
    }

    /// Copies the inverse of the loss scale, an f32, from 4 bytes of your buffer at this point of the encoder. It must be
    /// positive and finite; the value is not checked.
    ///
    /// # Errors
    ///
    /// [`Error::CopySource`] or [`Error::BufferRejected`] if the bytes cannot be copied; [`Error::NotEnabled`] for a clip by value
    /// without a loss scale; [`Error::DynamicLossScale`] if the plan updates its own scale.
    pub fn copy_inverse_loss_scale(
        &self,
        encoder: &mut CommandEncoder,
        source: &wgpu::Buffer,
        offset: u64,
    ) -> Result<(), Error> {
        let (checked_device, targets) = self.inverse_scales("copy_inverse_loss_scale")?;
        copy_number(checked_device, encoder, source, offset, &targets)
    }

    /// Replaces the [dynamic loss scale](crate::Clip::dynamic_loss_scale), to restore a checkpoint, for every command buffer that is
    /// submitted after this call.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`] if the clip has no dynamic loss scale; [`Error::ForeignQueue`] as for
    /// [`set_max_norms`](Self::set_max_norms).
    pub fn set_dynamic_loss_scale(&self, queue: &Queue, scale: LossScale) -> Result<(), Error> {
        let outcome = self.dynamic_scale()?;
        let inverse = inverse_scale(scale.scale())?;
        let bytes = [bytemuck::bytes_of(&scale.state()), &inverse.to_le_bytes()].concat();
        outcome.write(queue, &outcome.norm_params.buffer, 0, &bytes)
    }

    /// Supplies the norm of a plan of [`Clip::by_supplied_norm`](crate::Clip::by_supplied_norm), for every command buffer that is
    /// submitted after this call. An infinite norm, such as the joint norm of shards that exceeds f32, makes the coefficient 0;
    /// a negative norm counts as NaN.
    ///
    /// # Errors
    ///
    /// [`Error::UnexpectedNorm`] for any other clip; [`Error::ForeignQueue`] as for [`set_max_norms`](Self::set_max_norms).
    pub fn supply_norm(&self, queue: &Queue, total_norm: f32) -> Result<(), Error> {
        let (outcome, supplied) = self.supplied()?;
        // One NaN bit pattern means that no norm was supplied.
        let total_norm = if total_norm.is_nan() { f32::NAN } else { total_norm };
        outcome.write(queue, supplied, 0, &total_norm.to_le_bytes())
    }

    /// Copies the norm of a plan of [`Clip::by_supplied_norm`](crate::Clip::by_supplied_norm), an f32, from 4 bytes of your buffer
    /// at this point of the encoder: the `total_norm` of another plan's record, or the result of an all-reduce.
    /// A NaN whose bits are all 1 counts as no norm: nothing is scaled, and tickets fail with [`Error::NormNotSupplied`]. The record of
    /// a plan that has measured nothing, or not all of its [parts](crate::Gradient::part), has that norm.
    ///
    /// # Errors
    ///
    /// [`Error::CopySource`] or [`Error::BufferRejected`] if the bytes cannot be copied; [`Error::UnexpectedNorm`] for any other clip.
    pub fn copy_norm(
        &self,
        encoder: &mut CommandEncoder,
        source: &wgpu::Buffer,
        offset: u64,
    ) -> Result<(), Error> {
        let (outcome, supplied) = self.supplied()?;
        outcome.copy_number(encoder, source, offset, supplied, 0)
    }

    /// Writes records that were computed elsewhere, for every command buffer that is submitted after this call.
    pub(crate) fn write_records(&self, queue: &Queue, records: &[ClipRecord]) -> Result<(), Error> {
        let outcome = self.by_norm("write_records")?;
        let needed = outcome.count;
        if records.len() != needed {
            return Err(Error::ShardCount { what: "records", given: records.len(), needed });
        }
        outcome.write(queue, &outcome.records.buffer, 0, bytemuck::cast_slice(records))
    }

    /// Submits commands of a plan of a shard.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLost`]; [`Error::BufferRejected`] if wgpu refuses the commands; [`Error::ForeignQueue`].
    pub(crate) fn submit(&self, queue: &Queue, encoder: CommandEncoder) -> Result<(), Error> {
        let outcome = self.by_norm("submit")?;
        outcome.checked_device.in_error_scope("the commands of a shard", 0, || {
            // wgpu reports an error of the queue to the queue's own device, which panics unless it has a handler.
            let submit = || queue.submit([encoder.finish()]);
            panics::catch(submit).map(drop).map_err(|_| Error::ForeignQueue)
        })
    }

    fn by_norm(&self, what: &'static str) -> Result<&Outcome, Error> {
        self.outcome.as_ref().ok_or(Error::NeedsNorm { what, clip: "a clip by value" })
    }

    /// Returns where the inverse of a fixed loss scale lies. `what` names the calling method in errors.
    fn inverse_scales(&self, what: &'static str) -> Result<(&CheckedDevice, Vec<Target<'_>>), Error> {
        match (&self.outcome, &self.loss_scale) {
            (Some(Outcome { has_dynamic_scale: true, .. }), _) => Err(Error::DynamicLossScale { what }),
            (Some(outcome), _) => {
                Ok((&outcome.checked_device, vec![(&outcome.norm_params.buffer, INVERSE_SCALE)]))
            }
            (None, Some(LossScaleBuffers { checked_device, buffers })) => {
                Ok((checked_device, buffers.iter().map(|buffer| (buffer, 0)).collect()))
            }
            (None, None) => Err(Error::NotEnabled { what: "loss scale", with: "loss_scale" }),
        }
    }

    fn supplied(&self) -> Result<(&Outcome, &wgpu::Buffer), Error> {
        let outcome = self.outcome.as_ref().ok_or(Error::UnexpectedNorm)?;
        outcome.supplied.as_ref().map(|supplied| (outcome, supplied)).ok_or(Error::UnexpectedNorm)
    }

    /// Replaces the step counts, one for each record, for every command buffer that is submitted after this call: to start from
    /// zero, or to continue those of another plan.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`] if the clip has no [`count_steps`](crate::Clip::count_steps); [`Error::StateCount`] if the number of
    /// counts differs from that of the records; [`Error::StepCounts`] if a largest norm is negative or not finite;
    /// [`Error::ForeignQueue`] as for [`set_max_norms`](Self::set_max_norms).
    pub fn set_step_counts(&self, queue: &Queue, counts: &[StepCounts]) -> Result<(), Error> {
        let (outcome, kept) = self.step_counts()?;
        check_step_counts(counts)?;
        outcome.restore(queue, kept, "step counts", counts)
    }

    /// Restores the norm histories of a [`z_clip`](crate::Clip::z_clip), one for each record, for every command buffer that is
    /// submitted after this call: from a checkpoint, or from the plan of gradients that have moved.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`] if the clip has no `z_clip`; [`Error::StateCount`] if the number of histories differs from that of
    /// the records; [`Error::NormHistory`] if a history is invalid; [`Error::ForeignQueue`] as for
    /// [`set_max_norms`](Self::set_max_norms).
    pub fn set_histories(&self, queue: &Queue, histories: &[NormHistory]) -> Result<(), Error> {
        let (outcome, kept) = self.histories()?;
        check_norm_histories(histories)?;
        outcome.restore(queue, kept, "norm histories", histories)
    }

    /// Restores the norm windows of an [`auto_clip`](crate::Clip::auto_clip), one for each record, for every command buffer that is
    /// submitted after this call: from a checkpoint, or from the plan of gradients that have moved.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`] if the clip has no `auto_clip`; [`Error::StateCount`] if the number of windows differs from that of
    /// the records; [`Error::NormWindow`] if a window has more norms than the clip keeps, or a norm that is not positive and finite;
    /// [`Error::ForeignQueue`] as for [`set_max_norms`](Self::set_max_norms).
    pub fn set_norm_windows(&self, queue: &Queue, windows: &[NormWindow]) -> Result<(), Error> {
        let (outcome, auto_clip, kept) = self.norm_windows()?;
        check_norm_windows(windows, auto_clip)?;
        outcome.check_state_count("norm windows", windows.len())?;
        let words = auto_clip.device_words(windows);
        outcome.write(queue, &kept.buffer, 0, bytemuck::cast_slice(&words))
    }
}

/// Where a number of the plan lies: its buffer, and the offset in it.
type Target<'a> = (&'a wgpu::Buffer, u64);

/// The offset of the inverse loss scale in `NormParams`.
const INVERSE_SCALE: u64 = std::mem::offset_of!(NormParams, inverse_scale) as u64;

// The state of the loss scale comes first, followed by its inverse.
const _: () = assert!(
    std::mem::offset_of!(NormParams, scale) == 0 && INVERSE_SCALE == size_of::<LossScaleState>() as u64
);

impl Outcome {
    /// Writes one value for each record.
    fn restore<T: Pod>(
        &self,
        queue: &Queue,
        kept: &Results,
        what: &'static str,
        values: &[T],
    ) -> Result<(), Error> {
        self.check_state_count(what, values.len())?;
        self.write(queue, &kept.buffer, 0, bytemuck::cast_slice(values))
    }

    /// Checks that there is one value for each record.
    const fn check_state_count(&self, what: &'static str, given: usize) -> Result<(), Error> {
        let records = self.count;
        if given == records { Ok(()) } else { Err(Error::StateCount { what, given, records }) }
    }

    fn write(&self, queue: &Queue, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        write(&self.checked_device, queue, buffer, offset, bytes)
    }

    /// Records a copy of 4 bytes from a buffer of the caller to one of the plan; see [`copy_number`].
    fn copy_number(
        &self,
        encoder: &mut CommandEncoder,
        source: &wgpu::Buffer,
        offset: u64,
        to: &wgpu::Buffer,
        at: u64,
    ) -> Result<(), Error> {
        copy_number(&self.checked_device, encoder, source, offset, &[(to, at)])
    }
}

fn write(
    checked_device: &CheckedDevice,
    queue: &Queue,
    buffer: &wgpu::Buffer,
    offset: u64,
    bytes: &[u8],
) -> Result<(), Error> {
    checked_device.in_error_scope("the new values of the plan", bytes.len() as u64, || {
        // wgpu reports an error of the queue to the queue's own device, which panics unless it has a handler.
        panics::catch(|| queue.write_buffer(buffer, offset, bytes)).map_err(|_| Error::ForeignQueue)
    })
}

/// Records copies of 4 bytes from a buffer of the caller to buffers of the plan, after checking that wgpu accepts them.
fn copy_number(
    checked_device: &CheckedDevice,
    encoder: &mut CommandEncoder,
    source: &wgpu::Buffer,
    offset: u64,
    targets: &[Target<'_>],
) -> Result<(), Error> {
    let usage = source.usage();
    let fits = offset.is_multiple_of(4) && offset.checked_add(4).is_some_and(|end| end <= source.size());
    if !usage.contains(BufferUsages::COPY_SRC) || !fits {
        return Err(Error::CopySource { offset, len: source.size(), usage: format!("{usage:?}") });
    }
    let unusable = [(is_mapped(source), "it is mapped"), (is_destroyed(source), "it has been destroyed")];
    if let Some((_, reason)) = unusable.into_iter().find(|(is_so, _)| *is_so) {
        // The loss of a device destroys its buffers.
        return Err(
            checked_device.lost_or(Error::BufferRejected { gradient: None, message: reason.to_owned() })
        );
    }
    let copy = |encoder: &mut CommandEncoder| {
        for &(to, at) in targets {
            encoder.copy_buffer_to_buffer(source, offset, to, at, 4);
        }
    };
    // wgpu checks the device of a buffer when the encoder is finished. A trial encoder, which is never submitted, does that
    // here.
    checked_device.in_error_scope("the copy of a number", 0, || {
        let device = checked_device.device();
        let mut trial = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        copy(&mut trial);
        trial.finish();
        Ok(())
    })?;
    copy(encoder);
    Ok(())
}
