//! What of a plan changes from step to step: limits, the loss scale, a supplied norm, and what is restored.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytemuck::Pod;
use wgpu::{BufferUsages, CommandEncoder, Queue};

use super::{ClipPlan, Measure, Outcome, Segment};
use crate::gpu::read_back::Results;
use crate::gpu::watched::{is_destroyed, is_mapped};
use crate::{Error, NormHistory, StepCounts, clip};

impl ClipPlan {
    /// Changes the limits: one for each group. It holds for every command buffer that is submitted after this call,
    /// whenever it was encoded. The queue must be that of the clipper's device, here and in all that follows:
    /// [`Error::Queue`] if it belongs to another device without a handler of uncaptured errors; with one, that is told.
    ///
    /// # Errors
    ///
    /// [`Error::MaxNorm`] if one is negative or NaN; [`Error::Limits`] if they are not as many as the groups;
    /// [`Error::NeedsNorm`] for a clip by value.
    pub fn set_max_norms(&self, queue: &Queue, max_norms: &[f32]) -> Result<(), Error> {
        let outcome = self.by_norm("set_max_norms")?;
        clip::check_max_norms(max_norms, outcome.groups)?;
        let mut table = outcome.table.clone();
        for (segment, limit) in table.iter_mut().zip(&outcome.limits) {
            segment.max_norm = limit.among(max_norms);
        }
        outcome.write(queue, &outcome.segments, 0, bytemuck::cast_slice(&table))
    }

    /// Copies the limit of a group from 4 bytes of a buffer of yours, an f32, at this place in the encoder. Whether it is
    /// a limit cannot be checked there: a negative one flips signs, and for NaN the policy for gradients that are
    /// not finite says what becomes of them.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] or [`Error::Refused`] if the bytes cannot be copied; [`Error::NoGroup`] if there is no such group;
    /// [`Error::NotByGroup`] if each gradient is clipped by itself; [`Error::NeedsNorm`] for a clip by value.
    pub fn copy_max_norm(
        &self,
        encoder: &mut CommandEncoder,
        group: usize,
        source: &wgpu::Buffer,
        offset: u64,
    ) -> Result<(), Error> {
        let outcome = self.by_norm("copy_max_norm")?;
        if !outcome.together {
            return Err(Error::NotByGroup { what: "copy_max_norm" });
        }
        if group >= outcome.groups {
            return Err(Error::NoGroup { given: group, groups: outcome.groups });
        }
        let at = group * size_of::<Segment>() + std::mem::offset_of!(Segment, max_norm);
        outcome.copy_number(encoder, source, offset, &outcome.segments, at as u64)
    }

    /// Changes the loss scale, as [`Clip::loss_scale`](crate::Clip::loss_scale), for every command buffer that is
    /// submitted after this call.
    ///
    /// # Errors
    ///
    /// [`Error::LossScale`] if it or its inverse is not positive and finite; [`Error::NeedsNorm`] for a clip by value.
    pub fn set_loss_scale(&self, queue: &Queue, scale: f32) -> Result<(), Error> {
        let outcome = self.by_norm("set_loss_scale")?;
        let inverse = clip::inverse_scale(scale)?;
        outcome.write(queue, &outcome.measure, INVERSE_SCALE, &inverse.to_le_bytes())
    }

    /// Copies the inverse of the loss scale from 4 bytes of a buffer of yours, an f32, at this place in the encoder. It
    /// must be positive and finite, which cannot be checked there.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] or [`Error::Refused`] if the bytes cannot be copied; [`Error::NeedsNorm`] for a clip by value.
    pub fn copy_inverse_loss_scale(
        &self,
        encoder: &mut CommandEncoder,
        source: &wgpu::Buffer,
        offset: u64,
    ) -> Result<(), Error> {
        let outcome = self.by_norm("copy_inverse_loss_scale")?;
        outcome.copy_number(encoder, source, offset, &outcome.measure, INVERSE_SCALE)
    }

    /// Supplies the norm of a plan that measures none ([`Clip::by_supplied_norm`](crate::Clip::by_supplied_norm)), for
    /// every command buffer that is submitted after this call. An infinite norm, as one of shards that exceeds f32, makes the
    /// coefficient 0; a negative one counts as NaN.
    ///
    /// # Errors
    ///
    /// [`Error::MeasuresItself`] if the plan measures its norm, or has none.
    pub fn supply_norm(&self, queue: &Queue, total_norm: f32) -> Result<(), Error> {
        let (outcome, supplied) = self.supplied()?;
        // One NaN stands for no norm.
        let total_norm = if total_norm.is_nan() { f32::NAN } else { total_norm };
        outcome.write(queue, supplied, 0, &total_norm.to_le_bytes())
    }

    /// Copies the norm of such a plan from 4 bytes of a buffer of yours, an f32, at this place in the encoder: the
    /// `total_norm` of another plan's record, or what an all-reduce left. A NaN whose bits are all 1 counts as none: nothing is
    /// scaled, and tickets fail with [`Error::NormMissing`].
    ///
    /// # Errors
    ///
    /// [`Error::Source`] or [`Error::Refused`] if the bytes cannot be copied; [`Error::MeasuresItself`] if the plan
    /// measures its norm.
    pub fn copy_norm(
        &self,
        encoder: &mut CommandEncoder,
        source: &wgpu::Buffer,
        offset: u64,
    ) -> Result<(), Error> {
        let (outcome, supplied) = self.supplied()?;
        outcome.copy_number(encoder, source, offset, supplied, 0)
    }

    fn by_norm(&self, what: &'static str) -> Result<&Outcome, Error> {
        self.outcome.as_ref().ok_or(Error::NeedsNorm { what, clip: "a clip by value" })
    }

    fn supplied(&self) -> Result<(&Outcome, &wgpu::Buffer), Error> {
        let outcome = self.outcome.as_ref().ok_or(Error::MeasuresItself)?;
        outcome.supplied.as_ref().map(|supplied| (outcome, supplied)).ok_or(Error::MeasuresItself)
    }

    /// Sets the counts: to begin again, or to go on where another plan has ended. It holds for every command buffer that
    /// is submitted after this call.
    ///
    /// # Errors
    ///
    /// [`Error::NotAskedFor`] if the plan does not count; [`Error::Records`] if they are not as many as the records;
    /// [`Error::StepCounts`] if one cannot have come about.
    pub fn set_step_counts(&self, queue: &Queue, counts: &[StepCounts]) -> Result<(), Error> {
        let (outcome, kept) = self.step_counts()?;
        counts.iter().enumerate().try_for_each(|(record, counts)| counts.checked(record))?;
        outcome.restore(queue, kept, "counts", counts)
    }

    /// Restores that state: in this plan, or in one that was made anew, since buffers have moved. It holds for every
    /// command buffer that is submitted after this call.
    ///
    /// # Errors
    ///
    /// [`Error::NotAskedFor`] if the limit does not follow past norms; [`Error::Records`] if they are not as many as the
    /// records; [`Error::History`] if one cannot have come about.
    pub fn set_histories(&self, queue: &Queue, histories: &[NormHistory]) -> Result<(), Error> {
        let (outcome, kept) = self.histories()?;
        histories.iter().enumerate().try_for_each(|(record, history)| history.checked(record))?;
        outcome.restore(queue, kept, "histories", histories)
    }
}

/// Where the inverse of the loss scale lies in `Measure`.
const INVERSE_SCALE: u64 = std::mem::offset_of!(Measure, inverse_scale) as u64;

impl Outcome {
    /// Writes what is kept for each record.
    fn restore<T: Pod>(
        &self,
        queue: &Queue,
        kept: &Results,
        what: &'static str,
        values: &[T],
    ) -> Result<(), Error> {
        if values.len() != self.count {
            return Err(Error::Records { what, given: values.len(), records: self.count });
        }
        self.write(queue, &kept.buffer, 0, bytemuck::cast_slice(values))
    }

    fn write(&self, queue: &Queue, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.watched.guarded("new options", bytes.len() as u64, || {
            // What wgpu has against a queue of another device it tells that device, which panics unless it has a handler.
            let write = AssertUnwindSafe(|| queue.write_buffer(buffer, offset, bytes));
            catch_unwind(write).map_err(|_| Error::Queue)
        })
    }

    /// Copies 4 bytes from a caller's buffer to one of ours, if wgpu will not mind.
    fn copy_number(
        &self,
        encoder: &mut CommandEncoder,
        source: &wgpu::Buffer,
        offset: u64,
        to: &wgpu::Buffer,
        at: u64,
    ) -> Result<(), Error> {
        let usage = source.usage();
        let fits = offset.is_multiple_of(4) && offset.checked_add(4).is_some_and(|end| end <= source.size());
        if !usage.contains(BufferUsages::COPY_SRC) || !fits {
            return Err(Error::Source { offset, len: source.size(), usage: format!("{usage:?}") });
        }
        let unusable = [(is_mapped(source), "it is mapped"), (is_destroyed(source), "it has been destroyed")];
        if let Some((_, reason)) = unusable.into_iter().find(|(is_so, _)| *is_so) {
            // With a device, all of its buffers are destroyed.
            return Err(self.watched.lost_or(Error::Refused { gradient: None, message: reason.to_owned() }));
        }
        // wgpu looks at whose buffer it is when an encoder is finished. So one of ours is first, and never submitted.
        self.watched.guarded("a copied number", 0, || {
            let device = self.watched.device();
            let mut trial = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            trial.copy_buffer_to_buffer(source, offset, to, at, 4);
            trial.finish();
            Ok(())
        })?;
        encoder.copy_buffer_to_buffer(source, offset, to, at, 4);
        Ok(())
    }
}
