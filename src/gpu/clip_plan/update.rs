//! Updates of a plan between steps: limits, the loss scale, the supplied norm, and restored state.

use wgpu::{BufferUsages, CommandEncoder, Queue};

use super::ClipPlan;
use crate::gpu::error_scope::{CheckedDevice, is_destroyed, is_mapped};
use crate::loss_scale::LossScale;
use crate::plan::{Place, Write};
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
        self.write(queue, &[self.plan.set_max_norms(max_norms)?])
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
        self.copy_number(encoder, source, offset, &[self.plan.max_norm(group)?])
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
        self.write(queue, &self.plan.set_loss_scale(scale)?)
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
        let places = self.plan.inverse_loss_scales("copy_inverse_loss_scale")?;
        self.copy_number(encoder, source, offset, &places)
    }

    /// Replaces the [dynamic loss scale](crate::Clip::dynamic_loss_scale), to restore a checkpoint, for every command buffer that is
    /// submitted after this call.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`] if the clip has no dynamic loss scale; [`Error::ForeignQueue`] as for
    /// [`set_max_norms`](Self::set_max_norms).
    pub fn set_dynamic_loss_scale(&self, queue: &Queue, scale: LossScale) -> Result<(), Error> {
        self.write(queue, &[self.plan.set_dynamic_loss_scale(scale)?])
    }

    /// Supplies the norm of a plan of [`Clip::by_supplied_norm`](crate::Clip::by_supplied_norm), for every command buffer that is
    /// submitted after this call. An infinite norm, such as the joint norm of shards that exceeds f32, makes the coefficient 0;
    /// a negative norm counts as NaN.
    ///
    /// # Errors
    ///
    /// [`Error::UnexpectedNorm`] for any other clip; [`Error::ForeignQueue`] as for [`set_max_norms`](Self::set_max_norms).
    pub fn supply_norm(&self, queue: &Queue, total_norm: f32) -> Result<(), Error> {
        self.write(queue, &[self.plan.supply_norm(total_norm)?])
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
        self.copy_number(encoder, source, offset, &[self.plan.supplied_norm()?])
    }

    /// Writes records that were computed elsewhere, for every command buffer that is submitted after this call.
    pub(crate) fn write_records(&self, queue: &Queue, records: &[ClipRecord]) -> Result<(), Error> {
        self.write(queue, &[self.plan.set_records(records)?])
    }

    /// Submits commands of a plan of a shard.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLost`]; [`Error::BufferRejected`] if wgpu refuses the commands; [`Error::ForeignQueue`].
    pub(crate) fn submit(&self, queue: &Queue, encoder: CommandEncoder) -> Result<(), Error> {
        self.context.checked_device().in_error_scope("the commands of a shard", 0, || {
            // wgpu reports an error of the queue to the queue's own device, which panics unless it has a handler.
            let submit = || queue.submit([encoder.finish()]);
            panics::catch(submit).map(drop).map_err(|_| Error::ForeignQueue)
        })
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
        self.write(queue, &[self.plan.set_step_counts(counts)?])
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
        self.write(queue, &[self.plan.set_histories(histories)?])
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
        self.write(queue, &[self.plan.set_norm_windows(windows)?])
    }
    /// Writes new values into buffers of the plan.
    fn write(&self, queue: &Queue, writes: &[Write]) -> Result<(), Error> {
        let bytes = writes.iter().map(|write| write.bytes.len() as u64).sum();
        self.context.checked_device().in_error_scope("the new values of the plan", bytes, || {
            for Write { place, bytes } in writes {
                let write = || queue.write_buffer(self.buffer(place.buffer), place.offset, bytes);
                // wgpu reports an error of the queue to the queue's own device, which panics unless it has a handler.
                panics::catch(write).map_err(|_| Error::ForeignQueue)?;
            }
            Ok(())
        })
    }

    /// Records copies of 4 bytes from a buffer of the caller; see [`copy_number`].
    fn copy_number(
        &self,
        encoder: &mut CommandEncoder,
        source: &wgpu::Buffer,
        offset: u64,
        places: &[Place],
    ) -> Result<(), Error> {
        let targets: Vec<_> = places.iter().map(|place| (self.buffer(place.buffer), place.offset)).collect();
        copy_number(self.context.checked_device(), encoder, source, offset, &targets)
    }
}

/// Where a number of the plan lies: its buffer, and the offset in it.
type Target<'a> = (&'a wgpu::Buffer, u64);

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
