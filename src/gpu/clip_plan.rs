//! `ClipPlan`: the bind groups of a set of gradients, ready to be encoded step after step.

mod build;
mod builder;
mod norm;

use bytemuck::Pod;
use wgpu::{BufferUsages, CommandEncoder, Queue};

use super::read_back::{self, ReadBack, Results};
use super::scope::guarded;
use crate::clip::Limit;
use crate::{ClipRecord, Error, NormHistory, StepCounts, TensorStats};

#[cfg(test)]
pub(super) use build::Bounds;
pub(super) use build::build;
pub(super) use norm::{Measure, Segment};

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
    records: Results,
    /// How many there are.
    count: usize,
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
    /// What the clip asks for besides.
    histories: Option<Results>,
    step_counts: Option<Results>,
    tensor_stats: Option<Results>,
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
    /// group; or one for each gradient, or each of its [`rows`](crate::Gradient::rows), where each is clipped by itself.
    ///
    /// It holds what the last norm pass found. None for a clip by value, which measures nothing.
    #[must_use]
    pub fn record_buffer(&self) -> Option<&wgpu::Buffer> {
        self.outcome.as_ref().map(|outcome| &outcome.records.buffer)
    }

    /// Records a copy of the record, taken at this place in the encoder; the ticket gives it to the host once the
    /// encoder has been submitted. Any number of tickets may be under way. Where there are several records, it is the
    /// first.
    ///
    /// A small staging buffer is allocated where none of an earlier ticket is free.
    pub fn read_back(&self, encoder: &mut CommandEncoder) -> ReadBack {
        match &self.outcome {
            Some(Outcome { is_error: true, records, .. }) => {
                records.read_back(encoder, read_back::first_finite)
            }
            Some(Outcome { records, .. }) => records.read_back(encoder, |bytes| Ok(read_back::first(bytes))),
            None => ReadBack::failed(Error::NothingMeasured),
        }
    }

    /// [`read_back`](Self::read_back) of all records: one for each group; or one for each gradient, or each of its rows,
    /// where each is clipped by itself.
    pub fn read_back_all(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<ClipRecord>> {
        match &self.outcome {
            Some(Outcome { is_error: true, records, .. }) => {
                records.read_back(encoder, read_back::all_finite)
            }
            Some(Outcome { records, .. }) => records.read_back(encoder, |bytes| Ok(read_back::all(bytes))),
            None => ReadBack::failed(Error::NothingMeasured),
        }
    }

    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> usize {
        self.outcome.as_ref().map_or(0, |outcome| outcome.count)
    }

    /// The buffer with the [`TensorStats`] of each gradient, in the order of the list, for a shader of yours: storage, and
    /// to copy from. [`TENSOR_STATS_WGSL`](crate::TENSOR_STATS_WGSL) declares the type. None unless the clip asks for
    /// [`tensor_stats`](crate::Clip::tensor_stats).
    #[must_use]
    pub fn tensor_stats_buffer(&self) -> Option<&wgpu::Buffer> {
        self.outcome.as_ref()?.tensor_stats.as_ref().map(|stats| &stats.buffer)
    }

    /// [`read_back`](Self::read_back) of these. That a gradient is not finite is what they are to tell; it is no error
    /// here. Without [`tensor_stats`](crate::Clip::tensor_stats) the ticket fails with [`Error::NotAskedFor`].
    pub fn read_back_tensor_stats(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<TensorStats>> {
        match self.tensor_stats() {
            Ok(stats) => stats.read_back(encoder, |bytes| Ok(read_back::all(bytes))),
            Err(error) => ReadBack::failed(error),
        }
    }

    /// [`read_back`](Self::read_back) of what was counted since the plan was made: the counts of each record. Without
    /// [`count_steps`](crate::Clip::count_steps) the ticket fails with [`Error::NotAskedFor`].
    pub fn read_back_step_counts(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<StepCounts>> {
        match self.step_counts() {
            Ok((_, counts)) => counts.read_back(encoder, |bytes| Ok(read_back::all(bytes))),
            Err(error) => ReadBack::failed(error),
        }
    }

    /// Sets the counts: to begin again, or to go on where another plan has ended. It holds for every command buffer that
    /// is submitted after this call.
    ///
    /// # Errors
    ///
    /// [`Error::NotAskedFor`] if the plan does not count; [`Error::Records`] if they are not as many as the records.
    pub fn set_step_counts(&self, queue: &Queue, counts: &[StepCounts]) -> Result<(), Error> {
        let (outcome, kept) = self.step_counts()?;
        outcome.restore(queue, kept, "counts", counts)
    }

    /// [`read_back`](Self::read_back) of the state of a [`z_clip`](crate::Clip::z_clip), for each record: what to save with
    /// a checkpoint. Without one the ticket fails with [`Error::NotAskedFor`].
    pub fn read_back_histories(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<NormHistory>> {
        match self.histories() {
            Ok((_, histories)) => histories.read_back(encoder, |bytes| Ok(read_back::all(bytes))),
            Err(error) => ReadBack::failed(error),
        }
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

    fn tensor_stats(&self) -> Result<&Results, Error> {
        let stats = self.outcome.as_ref().and_then(|outcome| outcome.tensor_stats.as_ref());
        stats.ok_or(Error::NotAskedFor { what: "statistics of each gradient", with: "tensor_stats" })
    }

    fn step_counts(&self) -> Result<(&Outcome, &Results), Error> {
        let error = Error::NotAskedFor { what: "counts over the steps", with: "count_steps" };
        let outcome = self.outcome.as_ref();
        outcome.and_then(|outcome| Some((outcome, outcome.step_counts.as_ref()?))).ok_or(error)
    }

    fn histories(&self) -> Result<(&Outcome, &Results), Error> {
        let error = Error::NotAskedFor { what: "histories of norms", with: "z_clip" };
        let outcome = self.outcome.as_ref();
        outcome.and_then(|outcome| Some((outcome, outcome.histories.as_ref()?))).ok_or(error)
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
