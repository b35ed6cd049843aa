//! `ClipPlan`: the dispatches and bind groups of a clip of a set of gradients, which are encoded at every step.

mod build;
mod builder;
mod norm;
mod outputs;
mod rebind;
mod segment_map;
mod update;

use std::sync::Arc;

use wgpu::{CommandEncoder, ComputePass};

use super::error_scope::CheckedDevice;
use super::labels::Labels;
use super::read_back::Results;
use crate::kernels::tables::Segment;
use crate::operation::Limit;
use crate::{AutoClip, Error};

use rebind::Origin;
pub(super) use rebind::prepare;

/// A clip of one set of gradients: prepared once by [`Clipper::prepare`](crate::Clipper::prepare), encoded at every step.
///
/// Encoding only records dispatches: it does not submit, wait, allocate or fail. The encoder must belong to the clipper's
/// device, which wgpu checks only when the encoder is finished. The dispatches run in the order of the command buffer: after
/// the backward pass that was encoded or submitted before, and before the optimizer that comes after.
#[derive(Debug)]
pub struct ClipPlan {
    /// The dispatches that measure each part; a single part unless gradients are in parts. Empty for a clip by value.
    parts: Vec<Vec<Step>>,
    /// Whether gradients are in parts.
    in_parts: bool,
    /// Whether partials are reset after they have been read.
    resets: bool,
    /// The dispatches that make the records; empty for a clip by value.
    record: Vec<Step>,
    /// The dispatches that write the gradients.
    apply: Vec<Step>,
    /// The dispatch that does all of that for a few gradients.
    small: Option<Step>,
    coefficient_only: bool,
    /// None for a clip by value.
    outcome: Option<Outcome>,
    /// Only for a clip by value with a loss scale.
    loss_scale: Option<LossScaleBuffers>,
    scratch_bytes: u64,
    labels: Labels,
    /// Set once the plan is built.
    origin: Option<Origin>,
}

/// The buffers of a clip by norm that last from step to step, and what is needed to update them.
#[derive(Debug)]
struct Outcome {
    checked_device: Arc<CheckedDevice>,
    records: Results,
    /// The number of records.
    count: usize,
    /// Whether reading the record of non-finite gradients is an error.
    is_error: bool,
    norm_params: Results,
    /// Whether the plan updates the loss scale.
    has_dynamic_scale: bool,
    /// The `Segment`s of `segment.wgsl`, which hold the limits.
    segments: wgpu::Buffer,
    /// The host copy of the segments, for updates of the limits.
    table: Vec<Segment>,
    /// How the limit of each record follows from that of its group.
    limits: Vec<Limit>,
    groups: usize,
    /// Whether each segment is a group.
    together: bool,
    /// The norm that the caller supplies, for a clip by supplied norm.
    supplied: Option<wgpu::Buffer>,
    histories: Option<Results>,
    norm_windows: Option<(AutoClip, Results)>,
    step_counts: Option<Results>,
    tensor_stats: Option<Results>,
    /// Only for a shard of a reproducible norm.
    tile_partials: Option<TilePartials>,
}

/// The partials of the plan's own tiles, for the host to read.
#[derive(Debug)]
struct TilePartials {
    banks: Vec<wgpu::Buffer>,
    /// The location of each partial, if there are several banks; see [`Layout::partial_locations`](super::layout::Layout).
    locations: Vec<u32>,
    /// The size of a partial, in words.
    words: usize,
    /// All banks, one after the other.
    copy: Results,
}

/// The buffers of a clip by value that begin with the inverse of the loss scale: one for each element type.
#[derive(Debug)]
struct LossScaleBuffers {
    checked_device: Arc<CheckedDevice>,
    buffers: [wgpu::Buffer; 3],
}

/// One dispatch with its bind group.
#[derive(Debug)]
struct Step {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    grid: [u32; 2],
}

impl ClipPlan {
    /// Measures the gradients and clips them.
    ///
    /// A clip by global norm reads every gradient once; if the norm exceeds the limit it reads and writes them once
    /// more. With [`Clip::coefficient_only`](crate::Clip::coefficient_only) it only reads them. A clip by value reads
    /// every gradient once and writes what exceeds its bounds.
    ///
    /// A clip by one norm of a few thousand elements is a single dispatch, with the same bits as the two halves; see
    /// [`dispatches`](Self::dispatches).
    ///
    /// It begins one or two compute passes. To record into a pass of yours, call [`encode_in_pass`](Self::encode_in_pass).
    pub fn encode(&self, encoder: &mut CommandEncoder) {
        if self.small.is_none() && self.apply().len() > 1 {
            // Each dispatch of a pass changes the state of a buffer, so that wgpu puts a barrier before it and it starts on an
            // idle GPU. Between two passes there is one barrier for all.
            self.encode_norm(encoder);
            self.encode_scale(encoder);
        } else {
            begin_pass(encoder, "gradclip", self.all());
        }
    }

    /// Records only the first half of [`encode`](Self::encode): measures the norm and writes the record. For a clip by value it
    /// records nothing.
    pub fn encode_norm(&self, encoder: &mut CommandEncoder) {
        begin_pass(encoder, "gradclip.norm", self.norm());
    }

    /// Records only the measurement of one part: the gradients with this [`Gradient::part`](crate::Gradient::part). Encode it
    /// right after the kernels that produce these gradients, while they are still in the GPU's cache.
    /// [`encode_record`](Self::encode_record) then reads no gradient. The parts of a step may be encoded in any order, in one
    /// encoder or over several submissions. If a part is encoded twice, the last measurement counts.
    ///
    /// The coefficient is known only after all parts are measured. Until then, an optimizer cannot use or free any gradient.
    ///
    /// ```
    /// # let adapter = gradclip::adapters::enumerate().into_iter().next().expect("an adapter: scripts/test installs a software one");
    /// # let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
    /// # let buffer = || device.create_buffer(&wgpu::BufferDescriptor {
    /// #     label: None, size: 64, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false,
    /// # });
    /// # let (body, head) = (buffer(), buffer());
    /// # use gradclip::{Clip, Clipper, Gradient};
    /// let gradients = [Gradient::f32(&body).part(1), Gradient::f32(&head).part(0)];
    /// let plan = Clipper::new(&device)?.prepare(&gradients, Clip::by_global_norm(1.0))?;
    /// let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    /// // ... the backward pass of the head ...
    /// plan.encode_part(&mut encoder, 0)?;
    /// // ... the backward pass of the body ...
    /// plan.encode_part(&mut encoder, 1)?;
    /// plan.encode_record(&mut encoder)?;
    /// plan.encode_scale(&mut encoder);
    /// let ticket = plan.read_back(&mut encoder);
    /// queue.submit([encoder.finish()]);
    /// assert_eq!(ticket.wait()?.total_norm, 0.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPart`] if the plan has no part of this number, or is not measured in parts.
    pub fn encode_part(&self, encoder: &mut CommandEncoder, part: usize) -> Result<(), Error> {
        begin_pass(encoder, "gradclip.part", self.part(part)?.iter());
        Ok(())
    }

    /// Records the dispatches that compute the norm from the partials of all gradients, and write the record. Encode it after
    /// [all parts](Self::encode_part), and after all kernels that write [`Partials`](crate::Partials).
    ///
    /// It resets the partials, so each of them must be written again before the next record. If one is missing, the ticket
    /// returns [`Error::PartMissing`], and no gradient of that record is changed. Other records are not
    /// affected.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPart`] if the plan has neither parts nor [`Partials`](crate::Partials); encode
    /// [`encode_norm`](Self::encode_norm) instead.
    pub fn encode_record(&self, encoder: &mut CommandEncoder) -> Result<(), Error> {
        begin_pass(encoder, "gradclip.record", self.record()?.iter());
        Ok(())
    }

    /// Records only the second half: multiplies the gradients by the factor of the record, or clamps them. It does so for a
    /// [`coefficient_only`](crate::Clip::coefficient_only) plan too.
    pub fn encode_scale(&self, encoder: &mut CommandEncoder) {
        begin_pass(encoder, "gradclip.scale", self.apply.iter());
    }

    /// [`encode`](Self::encode) in a compute pass that you have begun, so that your timestamps, your debug groups or your other
    /// dispatches are in the same pass. It sets the pipeline and bind group 0 of the pass, and leaves both set.
    ///
    /// The results are the same as those of [`encode`](Self::encode). The price: with more buffers than one dispatch can bind,
    /// wgpu puts a barrier before each dispatch of the second half, where [`encode`](Self::encode) has one for all.
    ///
    /// ```
    /// # let adapter = gradclip::adapters::enumerate().into_iter().next().expect("an adapter: scripts/test installs a software one");
    /// # let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
    /// # let gradient = device.create_buffer(&wgpu::BufferDescriptor {
    /// #     label: None, size: 64, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false,
    /// # });
    /// # use gradclip::{Clip, Clipper, Gradient};
    /// # let plan = Clipper::new(&device)?.prepare(&[Gradient::f32(&gradient)], Clip::by_global_norm(1.0))?;
    /// let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    /// let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
    ///     label: Some("backward and clip"),
    ///     timestamp_writes: None, // or yours
    /// });
    /// // ... the dispatches of the backward pass ...
    /// plan.encode_in_pass(&mut pass);
    /// drop(pass);
    /// let ticket = plan.read_back(&mut encoder);
    /// queue.submit([encoder.finish()]);
    /// assert_eq!(ticket.wait()?.total_norm, 0.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn encode_in_pass(&self, pass: &mut ComputePass<'_>) {
        record(pass, self.all());
    }

    /// [`encode_norm`](Self::encode_norm) in a compute pass that you have begun; see [`encode_in_pass`](Self::encode_in_pass).
    pub fn encode_norm_in_pass(&self, pass: &mut ComputePass<'_>) {
        record(pass, self.norm());
    }

    /// [`encode_part`](Self::encode_part) in a compute pass that you have begun; see [`encode_in_pass`](Self::encode_in_pass).
    ///
    /// # Errors
    ///
    /// Those of [`encode_part`](Self::encode_part).
    pub fn encode_part_in_pass(&self, pass: &mut ComputePass<'_>, part: usize) -> Result<(), Error> {
        record(pass, self.part(part)?.iter());
        Ok(())
    }

    /// [`encode_record`](Self::encode_record) in a compute pass that you have begun; see [`encode_in_pass`](Self::encode_in_pass).
    ///
    /// # Errors
    ///
    /// Those of [`encode_record`](Self::encode_record).
    pub fn encode_record_in_pass(&self, pass: &mut ComputePass<'_>) -> Result<(), Error> {
        record(pass, self.record()?.iter());
        Ok(())
    }

    /// [`encode_scale`](Self::encode_scale) in a compute pass that you have begun; see [`encode_in_pass`](Self::encode_in_pass).
    pub fn encode_scale_in_pass(&self, pass: &mut ComputePass<'_>) {
        record(pass, self.apply.iter());
    }

    /// Returns the number of dispatches that [`encode`](Self::encode) records.
    ///
    /// It is 1 for a clip by one norm of at most four tiles of 4096 elements; each gradient begins a tile of its own. All
    /// gradients must be measured, scaled and of one type. The start and the length of f16 and bf16 gradients must be multiples
    /// of 16 bytes.
    /// Plans in parts or with other kernels' partials, general p, [`Clip::tensor_stats`](crate::Clip::tensor_stats),
    /// [`Clip::z_clip`](crate::Clip::z_clip), [`Clip::auto_clip`](crate::Clip::auto_clip) and devices that bind few buffers need more
    /// dispatches.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        self.all().count()
    }

    /// Returns the number of parts in which the gradients are measured: one more than the largest
    /// [`Gradient::part`](crate::Gradient::part), or 0 if no gradient is in a part.
    #[must_use]
    pub fn parts(&self) -> usize {
        if self.in_parts { self.parts.len() } else { 0 }
    }

    /// Returns the label of a gradient by its index in the list that the plan was prepared for:
    /// [`ClipRecord::first_non_finite`](crate::ClipRecord::first_non_finite) and the order of
    /// [`TensorStats`](crate::stats::TensorStats) are such indices. None without a [label](crate::Gradient::label).
    #[must_use]
    pub fn label(&self, gradient: usize) -> Option<&str> {
        self.labels.get(gradient)
    }

    /// Returns the device memory of the plan in bytes: tables, partials, parameters and records.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_bytes
    }

    /// Returns the dispatches of [`encode`](Self::encode).
    fn all(&self) -> impl Iterator<Item = &Step> {
        let halves = self.norm().chain(self.apply()).filter(|_| self.small.is_none());
        self.small.iter().chain(halves)
    }

    /// Returns the dispatches of the first half of [`encode`](Self::encode).
    fn norm(&self) -> impl Iterator<Item = &Step> {
        self.parts.iter().flatten().chain(&self.record)
    }

    /// Returns the dispatches that measure a part.
    fn part(&self, part: usize) -> Result<&[Step], Error> {
        let parts = self.parts();
        let steps = self.parts.get(part).filter(|_| self.in_parts);
        steps.map(Vec::as_slice).ok_or(Error::NoSuchPart { given: part, parts })
    }

    /// Returns the dispatches that make the records, or an error if the plan does not reset its partials.
    fn record(&self) -> Result<&[Step], Error> {
        if self.resets { Ok(&self.record) } else { Err(Error::NoSuchPart { given: 0, parts: 0 }) }
    }

    /// Returns the dispatches of the second half of [`encode`](Self::encode).
    fn apply(&self) -> &[Step] {
        if self.coefficient_only { &[] } else { &self.apply }
    }
}

/// Begins a pass and records the dispatches, if there are any.
fn begin_pass<'a>(encoder: &mut CommandEncoder, label: &str, steps: impl Iterator<Item = &'a Step>) {
    let mut steps = steps.peekable();
    if steps.peek().is_some() {
        let descriptor = wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None };
        record(&mut encoder.begin_compute_pass(&descriptor), steps);
    }
}

/// Records the dispatches.
fn record<'a>(pass: &mut ComputePass<'_>, steps: impl Iterator<Item = &'a Step>) {
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
