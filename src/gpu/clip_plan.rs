//! `ClipPlan`: the bind groups of a set of gradients, ready to be encoded step after step.

mod build;
mod builder;

use std::sync::Arc;

use wgpu::{BufferUsages, CommandEncoder, Queue};

use super::read_back::{FromRecords, ReadBack, Staging};
use super::scope::guarded;
use crate::clip::Limit;
use crate::{ClipRecord, Error};

#[cfg(test)]
pub(super) use build::Bounds;
pub(super) use build::{Measure, Segment, Set, build};

/// How to clip one set of gradients: made once by [`Clipper::prepare`](crate::Clipper::prepare), encoded at every step.
///
/// Encoding records dispatches and does nothing else: it neither submits, nor waits, nor allocates, nor fails. The
/// encoder must belong to the clipper's device. The dispatches run in the order of the command buffer: after the
/// backward pass that was encoded or submitted before, and before the optimizer that comes after.
#[derive(Debug)]
pub struct ClipPlan {
    /// The norm pass; empty for a clip by value.
    norm: Vec<Step>,
    /// The pass that writes the gradients.
    apply: Vec<Step>,
    coefficient_only: bool,
    /// None for a clip by value.
    outcome: Option<Outcome>,
    scratch_bytes: u64,
}

/// What a clip by a norm works with from step to step.
#[derive(Debug)]
struct Outcome {
    device: wgpu::Device,
    records: wgpu::Buffer,
    staging: Arc<Staging>,
    /// Whether gradients that are not finite are an error when the record is read.
    is_error: bool,
    /// `Measure` of `segment.wgsl`.
    measure: wgpu::Buffer,
    /// `Segment`s of `segment.wgsl`, which hold the limits.
    segments: wgpu::Buffer,
    /// Where they are copied from when limits change.
    table: Vec<Segment>,
    /// How the limit of each follows from that of its group.
    limits: Vec<Limit>,
    groups: usize,
    /// Whether the segments are the groups.
    together: bool,
    /// The norm that a caller supplies, where none is measured.
    supplied: Option<wgpu::Buffer>,
    /// The records of each gradient by itself, where they were asked for besides.
    tensors: Option<(Arc<Staging>, wgpu::Buffer)>,
}

/// One dispatch, bound.
#[derive(Debug)]
struct Step {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    grid: [u32; 2],
}

impl ClipPlan {
    /// Measures the gradients and clips them, all in one compute pass.
    ///
    /// A clip by global norm reads every gradient once; if the norm exceeds the limit it reads and writes them once
    /// more. With [`Clip::coefficient_only`](crate::Clip::coefficient_only) it only reads them. A clip by value reads
    /// every gradient once and writes what exceeds its bounds.
    pub fn encode(&self, encoder: &mut CommandEncoder) {
        let apply: &[Step] = if self.coefficient_only { &[] } else { &self.apply };
        run(encoder, "gradclip", self.norm.iter().chain(apply));
    }

    /// Only the first half of [`encode`](Self::encode): measures the norm and writes the record. A clip by value
    /// has no such half; nothing is recorded for it.
    pub fn encode_norm(&self, encoder: &mut CommandEncoder) {
        run(encoder, "gradclip.norm", self.norm.iter());
    }

    /// Only the second half: multiplies the gradients by the coefficient that stands in the record, or clamps them. It
    /// does so for a [`coefficient_only`](crate::Clip::coefficient_only) plan too.
    pub fn encode_scale(&self, encoder: &mut CommandEncoder) {
        run(encoder, "gradclip.scale", self.apply.iter());
    }

    /// The buffer with the [`ClipRecord`]s, for a shader of yours: it can be bound as storage (as uniform too, where
    /// there is but one), and copied from. [`RECORD_WGSL`](crate::RECORD_WGSL) declares the type. There is one for each
    /// group, or one for each gradient where each is clipped by itself.
    ///
    /// It holds what the last norm pass found. None for a clip by value, which measures nothing.
    #[must_use]
    pub fn record_buffer(&self) -> Option<&wgpu::Buffer> {
        self.outcome.as_ref().map(|outcome| &outcome.records)
    }

    /// Records a copy of the record, taken at this place in the encoder; the ticket gives it to the host once the
    /// encoder has been submitted. Any number of tickets may be under way. Where there are several records, it is the
    /// first.
    ///
    /// A small staging buffer is allocated where none of an earlier ticket is free.
    pub fn read_back(&self, encoder: &mut CommandEncoder) -> ReadBack {
        self.tickets(encoder)
    }

    /// [`read_back`](Self::read_back) of all records: one for each group, or one for each gradient where each is clipped
    /// by itself.
    pub fn read_back_all(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<ClipRecord>> {
        self.tickets(encoder)
    }

    /// The buffer with a [`ClipRecord`] for each gradient by itself, in the order of the list; its coefficient is 1, or
    /// NaN. None unless the clip has [`tensor_norms`](crate::Clip::tensor_norms), or is of each gradient by itself.
    #[must_use]
    pub fn tensor_record_buffer(&self) -> Option<&wgpu::Buffer> {
        let outcome = self.outcome.as_ref()?;
        match &outcome.tensors {
            Some((_, records)) => Some(records),
            None => (!outcome.together).then_some(&outcome.records),
        }
    }

    /// [`read_back`](Self::read_back) of these records. That a gradient is not finite is what they are to tell; it is no
    /// error here.
    pub fn read_back_tensors(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<ClipRecord>> {
        match &self.outcome {
            Some(
                Outcome { tensors: Some((staging, records)), .. }
                | Outcome { together: false, records, staging, .. },
            ) => staging.read_back(encoder, records, false),
            _ => ReadBack::failed(Error::NothingMeasured),
        }
    }

    fn tickets<R: FromRecords>(&self, encoder: &mut CommandEncoder) -> ReadBack<R> {
        match &self.outcome {
            Some(outcome) => outcome.staging.read_back(encoder, &outcome.records, outcome.is_error),
            None => ReadBack::failed(Error::NothingMeasured),
        }
    }

    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> usize {
        self.outcome.as_ref().map_or(0, |outcome| outcome.staging.count())
    }

    /// Changes the limits: one for each group. It holds for every command buffer that is submitted after this call,
    /// whenever it was encoded.
    ///
    /// # Errors
    ///
    /// [`Error::MaxNorm`] if one is negative or NaN; [`Error::Limits`] if they are not as many as the groups;
    /// [`Error::NeedsNorm`] for a clip by value.
    pub fn set_max_norms(&self, queue: &Queue, max_norms: &[f32]) -> Result<(), Error> {
        let outcome = self.by_norm()?;
        if let Some(&given) = max_norms.iter().find(|max_norm| max_norm.is_nan() || **max_norm < 0.0) {
            return Err(Error::MaxNorm { given });
        }
        if outcome.groups != max_norms.len() {
            return Err(Error::Limits { given: max_norms.len(), groups: outcome.groups });
        }
        let mut table = outcome.table.clone();
        for (segment, limit) in table.iter_mut().zip(&outcome.limits) {
            segment.max_norm = limit.among(max_norms);
        }
        outcome.write(queue, &outcome.segments, 0, bytemuck::cast_slice(&table))
    }

    /// Copies the limit of a group from 4 bytes of a buffer of yours, an f32, at this place in the encoder. Whether it is
    /// a limit cannot be checked there: a negative one flips signs, NaN fills NaN.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] if the bytes cannot be copied; [`Error::Limits`] if there is no such group; [`Error::NeedsNorm`]
    /// if groups have no record of their own: for a clip by value, or of each gradient by itself.
    pub fn copy_max_norm(
        &self,
        encoder: &mut CommandEncoder,
        group: usize,
        source: &wgpu::Buffer,
        offset: u64,
    ) -> Result<(), Error> {
        let outcome = self.by_norm()?;
        if !outcome.together {
            return Err(Error::NeedsNorm);
        }
        if group >= outcome.groups {
            return Err(Error::Limits { given: group + 1, groups: outcome.groups });
        }
        let at = group * size_of::<Segment>() + std::mem::offset_of!(Segment, max_norm);
        copy_number(encoder, source, offset, &outcome.segments, at as u64)
    }

    /// Changes the loss scale, as [`Clip::loss_scale`](crate::Clip::loss_scale), for every command buffer that is
    /// submitted after this call.
    ///
    /// # Errors
    ///
    /// [`Error::LossScale`] if it or its inverse is not positive and finite; [`Error::NeedsNorm`] for a clip by value.
    pub fn set_loss_scale(&self, queue: &Queue, scale: f32) -> Result<(), Error> {
        let outcome = self.by_norm()?;
        let inverse = crate::clip::inverse_scale(scale)?;
        outcome.write(queue, &outcome.measure, INVERSE_SCALE, &inverse.to_le_bytes())
    }

    /// Copies the inverse of the loss scale from 4 bytes of a buffer of yours, an f32, at this place in the encoder. It
    /// must be positive and finite, which cannot be checked there.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] if the bytes cannot be copied; [`Error::NeedsNorm`] for a clip by value.
    pub fn copy_inverse_loss_scale(
        &self,
        encoder: &mut CommandEncoder,
        source: &wgpu::Buffer,
        offset: u64,
    ) -> Result<(), Error> {
        copy_number(encoder, source, offset, &self.by_norm()?.measure, INVERSE_SCALE)
    }

    /// Supplies the norm of a plan that measures none ([`Clip::by_supplied_norm`](crate::Clip::by_supplied_norm)), for
    /// every command buffer that is submitted after this call.
    ///
    /// # Errors
    ///
    /// [`Error::MeasuresItself`] if the plan measures its norm, or has none.
    pub fn supply_norm(&self, queue: &Queue, total_norm: f32) -> Result<(), Error> {
        let (outcome, supplied) = self.supplied()?;
        outcome.write(queue, supplied, 0, &total_norm.to_le_bytes())
    }

    /// Copies the norm of such a plan from 4 bytes of a buffer of yours, an f32, at this place in the encoder: the
    /// `total_norm` of another plan's record, or what an all-reduce left.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] if the bytes cannot be copied; [`Error::MeasuresItself`] if the plan measures its norm.
    pub fn copy_norm(
        &self,
        encoder: &mut CommandEncoder,
        source: &wgpu::Buffer,
        offset: u64,
    ) -> Result<(), Error> {
        copy_number(encoder, source, offset, self.supplied()?.1, 0)
    }

    fn by_norm(&self) -> Result<&Outcome, Error> {
        self.outcome.as_ref().ok_or(Error::NeedsNorm)
    }

    fn supplied(&self) -> Result<(&Outcome, &wgpu::Buffer), Error> {
        let outcome = self.outcome.as_ref().ok_or(Error::MeasuresItself)?;
        outcome.supplied.as_ref().map(|supplied| (outcome, supplied)).ok_or(Error::MeasuresItself)
    }

    /// How many dispatches [`encode`](Self::encode) records.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        self.norm.len() + if self.coefficient_only { 0 } else { self.apply.len() }
    }

    /// What the plan takes of the device's memory, in bytes: tables, partials, parameters and the record.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_bytes
    }
}

/// Where the inverse of the loss scale lies in `Measure`.
const INVERSE_SCALE: u64 = std::mem::offset_of!(Measure, inverse_scale) as u64;

impl Outcome {
    fn write(&self, queue: &Queue, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        guarded(&self.device, "new options", bytes.len() as u64, || queue.write_buffer(buffer, offset, bytes))
    }
}

/// Copies 4 bytes from a caller's buffer to one of ours, if wgpu will not mind.
fn copy_number(
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
    encoder.copy_buffer_to_buffer(source, offset, to, at, 4);
    Ok(())
}

fn run<'a>(encoder: &mut CommandEncoder, label: &str, steps: impl Iterator<Item = &'a Step>) {
    let mut steps = steps.peekable();
    if steps.peek().is_none() {
        return;
    }
    let mut pass = encoder
        .begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None });
    let mut current = None;
    for Step { pipeline, bind_group, grid: [x, y] } in steps {
        if current != Some(pipeline) {
            pass.set_pipeline(pipeline);
            current = Some(pipeline);
        }
        pass.set_bind_group(0, bind_group, &[]);
        pass.dispatch_workgroups(*x, *y, 1);
    }
}
