//! `prepare` creates a plan; `rebind` replaces the gradients of a plan that have moved.

use std::sync::Arc;

use super::ClipPlan;
use super::build::build;
use crate::gpu::device_context::DeviceContext;
use crate::gpu::gradient::{Gradient, Set, Span};
use crate::gpu::labels::Labels;
use crate::operation::Operation;
use crate::{Error, GradientId};

/// What a plan was prepared from, except for the buffers of the gradients.
#[derive(Debug)]
pub(super) struct Origin {
    context: Arc<DeviceContext>,
    operations: Box<[Operation]>,
    /// The gradients, followed by their parameters, if the clip reads these.
    spans: Box<[Option<Span>]>,
    rows: Box<[u64]>,
    columns: Box<[u64]>,
    /// The number of parts; 0 unless a gradient is in one.
    parts: usize,
    /// See [`Set::total_elements`].
    total_elements: Option<u64>,
}

/// Validates gradients, and prepares a plan for them.
pub(in crate::gpu) fn prepare(
    context: &Arc<DeviceContext>,
    gradients: &[Gradient<'_>],
    operations: &[Operation],
    total_elements: Option<u64>,
) -> Result<ClipPlan, Error> {
    let set = Set { total_elements, ..Set::resolve(gradients, operations)? };
    let mut plan =
        build(context, operations, &set, None).map_err(|error| with_gradient(context, &set, error))?;
    plan.origin = Some(Origin {
        context: context.clone(),
        operations: operations.into(),
        spans: spans_of(&set).collect(),
        parts: set.parts,
        total_elements,
        rows: set.rows.into(),
        columns: set.columns.into(),
    });
    Ok(plan)
}

impl ClipPlan {
    /// Replaces the buffers and ranges of the gradients, for a trainer whose gradients move. All state stays on the device:
    /// limits, the loss scale, norm histories, norm windows, step counts, the supplied norm. Buffers that other shaders bind,
    /// such as [`record_buffer`](Self::record_buffer), also stay. Nothing is read back.
    ///
    /// Call it between two steps. It costs as much as [`Clipper::prepare`](crate::Clipper::prepare) with compiled kernels. The
    /// new list also replaces the labels. Command buffers that were encoded earlier still use the old buffers.
    ///
    /// ```
    /// # let adapter = gradclip::adapters::enumerate().into_iter().next().expect("an adapter: scripts/test installs a software one");
    /// # let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
    /// # let buffer = || device.create_buffer(&wgpu::BufferDescriptor {
    /// #     label: None, size: 64, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false,
    /// # });
    /// # use gradclip::{Clip, Clipper, Gradient};
    /// let clip = Clip::by_global_norm(1.0).count_steps();
    /// let mut plan = Clipper::new(&device)?.prepare(&[Gradient::f32(&buffer())], clip)?;
    /// for step in 1..4 {
    ///     let gradient = buffer(); // from a memory pool
    ///     plan.rebind(&[Gradient::f32(&gradient)])?;
    ///     let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    ///     plan.encode(&mut encoder);
    ///     let counts = plan.read_back_step_counts(&mut encoder);
    ///     queue.submit([encoder.finish()]);
    ///     assert_eq!(counts.wait()?[0].steps, step);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::RebindCount`] or [`Error::RebindMismatch`] if the list differs from that of the plan in anything but buffers,
    /// ranges and labels; the errors of [`Clipper::prepare`](crate::Clipper::prepare). On error, the plan is unchanged.
    pub fn rebind(&mut self, gradients: &[Gradient<'_>]) -> Result<(), Error> {
        let Some(origin) = &self.origin else { unreachable!("every prepared plan has an origin") };
        let total_elements = origin.total_elements;
        let set = Set { total_elements, ..Set::resolve(gradients, &origin.operations)? };
        origin.check_same(&set)?;
        let context = &origin.context;
        let rebuilt = build(context, &origin.operations, &set, Some(self));
        let mut plan = rebuilt.map_err(|error| with_gradient(context, &set, error))?;
        plan.origin = self.origin.take();
        *self = plan;
        Ok(())
    }
}

impl ClipPlan {
    /// Returns the number of elements, the group and the measured flag of each gradient.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (u64, usize, bool)> {
        let origin = self.origin.as_ref();
        let spans = origin.into_iter().flat_map(|origin| origin.spans.iter().take(origin.rows.len()));
        spans.flatten().map(|span| (span.len, span.group, span.measured))
    }

    /// Returns whether partials are reset after they have been read.
    pub(crate) const fn resets(&self) -> bool {
        self.resets
    }

    /// Returns the first gradient with more than one row or column.
    pub(crate) fn first_with_units(&self) -> Option<usize> {
        let origin = self.origin.as_ref()?;
        origin.rows.iter().zip(&origin.columns).position(|units| units != (&1, &1))
    }

    /// Returns the device of a clip by norm.
    pub(crate) fn device(&self) -> &wgpu::Device {
        let Some(origin) = &self.origin else { unreachable!("every prepared plan has an origin") };
        origin.context.device()
    }
}

fn spans_of<'a>(set: &'a Set<'_>) -> impl Iterator<Item = Option<Span>> + 'a {
    set.spans.iter().copied().map(Some).chain(set.parameters.iter().copied())
}

impl Origin {
    /// Checks that gradients differ from those of the plan only in buffers, ranges and labels.
    fn check_same(&self, set: &Set<'_>) -> Result<(), Error> {
        if set.rows.len() != self.rows.len() {
            return Err(Error::RebindCount { given: set.rows.len(), needed: self.rows.len() });
        }
        if !set.rows.is_empty() {
            // Without a part, a gradient is in part 0, but a plan without parts has no part 0 to encode.
            same(0, &set.labels, "number of parts", &set.parts, &self.parts)?;
        }
        for (index, (given, needed)) in set.rows.iter().zip(&self.rows).enumerate() {
            same(index, &set.labels, "number of rows", given, needed)?;
        }
        for (index, (given, needed)) in set.columns.iter().zip(&self.columns).enumerate() {
            same(index, &set.labels, "number of columns", given, needed)?;
        }
        for (given, needed) in spans_of(set).zip(&self.spans) {
            let (Some(given), Some(needed)) = (given, needed) else {
                // An unmeasured gradient may have a parameter or not.
                continue;
            };
            let at = given.gradient;
            let labels = &set.labels;
            same(at, labels, "number of elements", &given.len, &needed.len)?;
            same(at, labels, "element type", &given.dtype, &needed.dtype)?;
            same(at, labels, "group", &given.group, &needed.group)?;
            same(at, labels, "part", &given.part, &needed.part)?;
            same(at, labels, "share in the norm", &given.measured, &needed.measured)?;
            same(at, labels, "share in the scaling", &given.scaled, &needed.scaled)?;
            let elements = |span: &Span| span.partials.map(|partials| partials.elements);
            same(at, labels, "length of partials", &elements(&given), &elements(needed))?;
        }
        Ok(())
    }
}

fn same<T: PartialEq + std::fmt::Debug>(
    gradient: usize,
    labels: &Labels,
    what: &'static str,
    given: &T,
    needed: &T,
) -> Result<(), Error> {
    if given == needed {
        return Ok(());
    }
    let gradient = GradientId::new(gradient, labels.get(gradient));
    Err(Error::RebindMismatch { gradient, what, given: format!("{given:?}"), needed: format!("{needed:?}") })
}

/// Adds the gradient to an error of a buffer that wgpu rejects.
fn with_gradient(context: &DeviceContext, set: &Set<'_>, error: Error) -> Error {
    match error {
        Error::BufferRejected { gradient: None, .. } => find_rejected(context, set).unwrap_or(error),
        error => error,
    }
}

/// Finds a gradient whose buffer, parameter or partials wgpu rejects, and returns the error that names it.
fn find_rejected(context: &DeviceContext, set: &Set<'_>) -> Option<Error> {
    let rejected = |span: &Span, buffer: usize| {
        let buffer = set.buffers[buffer];
        let message = context.checked_device().validation_error(|| bind(context.device(), buffer))?;
        let gradient = GradientId::new(span.gradient, set.labels.get(span.gradient));
        Some(Error::BufferRejected { gradient: Some(gradient), message })
    };
    let mut gradients = set.spans.iter().filter(|span| span.len > 0);
    let mut parameters = set.parameters.iter().flatten().filter(|span| span.len > 0);
    let mut partials = set.spans.iter().filter_map(|span| Some((span, span.partials?.buffer)));
    gradients
        .find_map(|span| rejected(span, span.buffer))
        .or_else(|| {
            let error = Box::new(parameters.find_map(|span| rejected(span, span.buffer))?);
            Some(Error::InParameter { error })
        })
        .or_else(|| {
            let error = Box::new(partials.find_map(|(span, buffer)| rejected(span, buffer))?);
            Some(Error::InPartials { error })
        })
}

/// Binds the first word of a buffer, to find out whether wgpu rejects it.
fn bind(device: &wgpu::Device, buffer: &wgpu::Buffer) -> wgpu::BindGroup {
    let label = Some("gradclip.check");
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label,
        entries: &[wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: true },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        }],
    });
    let word = wgpu::BufferBinding { buffer, offset: 0, size: wgpu::BufferSize::new(4) };
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label,
        layout: &layout,
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(word) }],
    })
}
