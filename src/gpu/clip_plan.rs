//! `ClipPlan`: the dispatches and bind groups of a clip of a set of gradients, which are encoded at every step.

mod outputs;
mod prepare;
mod realize;
mod update;

use std::sync::Arc;

use wgpu::{CommandEncoder, ComputePass};

use super::device_context::DeviceContext;
use super::read_back::Results;
use crate::Error;
use crate::plan::{Passes, Plan};

pub(super) use prepare::prepare;

/// A clip of one set of gradients: prepared once by [`Clipper::prepare`](crate::Clipper::prepare), encoded at every step.
///
/// Encoding only records dispatches: it does not submit, wait, allocate or fail. The encoder must belong to the clipper's
/// device, which wgpu checks only when the encoder is finished. The dispatches run in the order of the command buffer: after
/// the backward pass that was encoded or submitted before, and before the optimizer that comes after.
#[derive(Debug)]
pub struct ClipPlan {
    plan: Plan,
    context: Arc<DeviceContext>,
    /// The buffers of the plan, by index.
    buffers: Vec<AllocatedBuffer>,
    steps: Passes<Step>,
}

/// A buffer of a plan on the device.
#[derive(Clone, Debug)]
enum AllocatedBuffer {
    /// Only shaders use it.
    Device(wgpu::Buffer),
    /// The host can read it.
    Readable(Results),
}

/// One dispatch with its bind group.
#[derive(Debug)]
struct Step {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    grid: [u32; 2],
}

impl AllocatedBuffer {
    fn buffer(&self) -> &wgpu::Buffer {
        match self {
            Self::Device(buffer) => buffer,
            Self::Readable(results) => results.buffer(),
        }
    }
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
        if self.steps.wants_two_passes() {
            self.encode_norm(encoder);
            self.encode_scale(encoder);
        } else {
            begin_pass(encoder, "gradclip", self.steps.all());
        }
    }

    /// Records only the first half of [`encode`](Self::encode): measures the norm and writes the record. For a clip by value it
    /// records nothing.
    pub fn encode_norm(&self, encoder: &mut CommandEncoder) {
        begin_pass(encoder, "gradclip.norm", self.steps.norm());
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
        begin_pass(encoder, "gradclip.part", self.steps.part(part)?);
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
        begin_pass(encoder, "gradclip.record", self.steps.record()?);
        Ok(())
    }

    /// Records only the second half: multiplies the gradients by the factor of the record, or clamps them. It does so for a
    /// [`coefficient_only`](crate::Clip::coefficient_only) plan too.
    pub fn encode_scale(&self, encoder: &mut CommandEncoder) {
        begin_pass(encoder, "gradclip.scale", self.steps.scale());
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
        record(pass, self.steps.all());
    }

    /// [`encode_norm`](Self::encode_norm) in a compute pass that you have begun; see [`encode_in_pass`](Self::encode_in_pass).
    pub fn encode_norm_in_pass(&self, pass: &mut ComputePass<'_>) {
        record(pass, self.steps.norm());
    }

    /// [`encode_part`](Self::encode_part) in a compute pass that you have begun; see [`encode_in_pass`](Self::encode_in_pass).
    ///
    /// # Errors
    ///
    /// Those of [`encode_part`](Self::encode_part).
    pub fn encode_part_in_pass(&self, pass: &mut ComputePass<'_>, part: usize) -> Result<(), Error> {
        record(pass, self.steps.part(part)?);
        Ok(())
    }

    /// [`encode_record`](Self::encode_record) in a compute pass that you have begun; see [`encode_in_pass`](Self::encode_in_pass).
    ///
    /// # Errors
    ///
    /// Those of [`encode_record`](Self::encode_record).
    pub fn encode_record_in_pass(&self, pass: &mut ComputePass<'_>) -> Result<(), Error> {
        record(pass, self.steps.record()?);
        Ok(())
    }

    /// [`encode_scale`](Self::encode_scale) in a compute pass that you have begun; see [`encode_in_pass`](Self::encode_in_pass).
    pub fn encode_scale_in_pass(&self, pass: &mut ComputePass<'_>) {
        record(pass, self.steps.scale());
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
        self.steps.all().count()
    }

    /// Returns the number of parts in which the gradients are measured: one more than the largest
    /// [`Gradient::part`](crate::Gradient::part), or 0 if no gradient is in a part.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.steps.parts()
    }

    /// Returns the label of a gradient by its index in the list that the plan was prepared for:
    /// [`ClipRecord::first_non_finite`](crate::ClipRecord::first_non_finite) and the order of
    /// [`TensorStats`](crate::stats::TensorStats) are such indices. None without a [label](crate::Gradient::label).
    #[must_use]
    pub fn label(&self, gradient: usize) -> Option<&str> {
        self.plan.label(gradient)
    }

    /// Returns the device memory of the plan in bytes: tables, partials, parameters and records.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.plan.scratch_bytes()
    }

    /// Returns what the plan does, as data.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the device.
    pub(crate) fn device(&self) -> &wgpu::Device {
        self.context.device()
    }

    /// Returns a buffer of the plan by its index.
    fn buffer(&self, index: usize) -> &wgpu::Buffer {
        self.buffers[index].buffer()
    }
}

/// Begins a pass and records the dispatches, if there are any.
fn begin_pass<'a>(encoder: &mut CommandEncoder, label: &str, steps: impl IntoIterator<Item = &'a Step>) {
    let mut steps = steps.into_iter().peekable();
    if steps.peek().is_some() {
        let descriptor = wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None };
        record(&mut encoder.begin_compute_pass(&descriptor), steps);
    }
}

/// Records the dispatches.
fn record<'a>(pass: &mut ComputePass<'_>, steps: impl IntoIterator<Item = &'a Step>) {
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
