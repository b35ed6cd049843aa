//! How a plan is made: what it lays out, which buffers it has, and which dispatches.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use wgpu::BufferUsages;

use super::builder::{Builder, or_one};
use super::{ClipPlan, Outcome, Step};
use crate::clip::{ByNorm, Limit, Operation, Scope};
use crate::gpu::clipper::Clipper;
use crate::gpu::gradient::Span;
use crate::gpu::kernels::{Kernel, NormKind};
use crate::gpu::layout::{self, Layout, Manner, Request};
use crate::gpu::read_back::Staging;
use crate::{ClipRecord, DType, Error, NonFinite};

const STORAGE: BufferUsages = BufferUsages::STORAGE;
const UNIFORM: BufferUsages = BufferUsages::UNIFORM;
const COPY_SRC: BufferUsages = BufferUsages::COPY_SRC;
const COPY_DST: BufferUsages = BufferUsages::COPY_DST;

/// `Segment` of `segment.wgsl`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(in crate::gpu) struct Segment {
    pub(in crate::gpu) first: u32,
    pub(in crate::gpu) count: u32,
    pub(in crate::gpu) max_norm: f32,
}

/// `Measure` of `segment.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::gpu) struct Measure {
    pub(in crate::gpu) epsilon: f32,
    pub(in crate::gpu) policy: u32,
    pub(in crate::gpu) inverse_scale: f32,
}

impl Measure {
    fn of(norm: &ByNorm) -> Self {
        // The POLICY_* of `segment.wgsl`. What is an error on the host is left alone on the device.
        let policy = match norm.non_finite {
            NonFinite::Propagate => 0,
            NonFinite::Skip | NonFinite::Error => 1,
            NonFinite::Zero => 2,
            NonFinite::Poison => 3,
        };
        Self { epsilon: norm.epsilon, policy, inverse_scale: norm.inverse_scale }
    }
}

/// `Bounds` of `clamp.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::gpu) struct Bounds {
    pub(in crate::gpu) low: f32,
    pub(in crate::gpu) high: f32,
}

/// Gradients that have been checked.
#[derive(Clone, Copy)]
pub(in crate::gpu) struct Set<'a> {
    /// The distinct buffers.
    pub(in crate::gpu) buffers: &'a [&'a wgpu::Buffer],
    pub(in crate::gpu) spans: &'a [Span],
    /// The indices of the spans that are not empty, by address.
    pub(in crate::gpu) order: &'a [usize],
}

/// Allocates and binds. Of the operations, one for each group, only the limits differ.
pub(in crate::gpu) fn build(
    clipper: &Clipper,
    operations: &[Operation],
    set: Set<'_>,
) -> Result<ClipPlan, Error> {
    if let Some(Operation::Norm(norm)) = operations.first() {
        let limits: Vec<f32> = operations.iter().map(Operation::limit).collect();
        return by_norm(clipper, norm, &limits, set);
    }
    let bounds = operations.iter().filter_map(Operation::bounds).collect::<Vec<_>>();
    by_value(clipper, &bounds, set)
}

fn by_norm(clipper: &Clipper, norm: &ByNorm, limits: &[f32], set: Set<'_>) -> Result<ClipPlan, Error> {
    let kind = NormKind::of(norm.norm_type);
    let together = matches!(norm.scope, Scope::Global | Scope::Supplied);
    let group_or_self = |(index, span): (usize, &Span)| if together { span.group } else { index };
    let request = Request {
        spans: set.spans,
        order: set.order,
        segment_of: &set.spans.iter().enumerate().map(group_or_self).collect::<Vec<_>>(),
        segments: if together { limits.len() } else { set.spans.len() },
        measures: norm.scope != Scope::Supplied,
        norm_reads_vectors: kind.reads_vectors(),
    };
    let layout = layout::lay_out(request, clipper.limits());
    let (table, limits_of) = segments(&layout, norm.scope, limits, set.spans);
    let scratch = size_of_val(&layout.tiles[..])
        + layout.owners.len() * kind.partial_bytes()
        + table.len() * size_of::<ClipRecord>();
    clipper.guarded(scratch as u64, layout.largest_dispatch(), || {
        let mut builder = Builder::new(clipper, set.buffers, &layout.tiles);
        let parts = NormParts::new(&mut builder, norm, &layout, &table);
        let mut steps = parts.steps(&builder, &layout, kind, table.len())?;
        let tensors = if norm.tensor_norms && together {
            let (step, records) = parts.tensors(&mut builder, &layout, kind, set.spans.len())?;
            steps.push(step);
            Some((Arc::new(Staging::new(clipper.device(), records.size(), set.spans.len())), records))
        } else {
            None
        };
        let segmented = table.len() > 1;
        let scale = |manner, slots| Kernel::Scale { segmented, manner, slots };
        let apply = builder.steps(&layout.apply, |_| &parts.records, scale)?;
        let outcome = Outcome {
            device: clipper.device().clone(),
            staging: Arc::new(Staging::new(clipper.device(), parts.records.size(), layout.segments.len())),
            records: parts.records,
            is_error: norm.non_finite == NonFinite::Error,
            measure: parts.measure,
            segments: parts.segments,
            table,
            limits: limits_of,
            groups: limits.len(),
            together,
            supplied: parts.supplied,
            tensors,
        };
        Ok(ClipPlan {
            norm: steps,
            apply,
            coefficient_only: norm.coefficient_only,
            outcome: Some(outcome),
            scratch_bytes: builder.bytes,
        })
    })
}

fn by_value(clipper: &Clipper, bounds: &[[f32; 2]], set: Set<'_>) -> Result<ClipPlan, Error> {
    let segments = bounds.len();
    let request = Request {
        spans: set.spans,
        order: set.order,
        segment_of: &set.spans.iter().map(|span| span.group).collect::<Vec<_>>(),
        segments,
        measures: false,
        norm_reads_vectors: false,
    };
    let layout = layout::lay_out(request, clipper.limits());
    clipper.guarded(size_of_val(&layout.tiles[..]) as u64, layout.largest_dispatch(), || {
        let mut builder = Builder::new(clipper, set.buffers, &layout.tiles);
        let [f32, f16, bf16] = [DType::F32, DType::F16, DType::BF16].map(|dtype| {
            let rounded = |bounds: &[f32; 2]| bounds.map(|bound| dtype.round(bound));
            let bounds: Vec<_> = bounds.iter().map(rounded).map(|[low, high]| Bounds { low, high }).collect();
            builder.holding("gradclip.bounds", STORAGE, &bounds)
        });
        let bounds_of = |manner: Manner| match manner.dtype {
            DType::F32 => &f32,
            DType::F16 => &f16,
            DType::BF16 => &bf16,
        };
        let segmented = segments > 1;
        let clamp = |manner, slots| Kernel::Clamp { segmented, manner, slots };
        let apply = builder.steps(&layout.apply, bounds_of, clamp)?;
        let scratch_bytes = builder.bytes;
        Ok(ClipPlan { norm: Vec::new(), apply, coefficient_only: false, outcome: None, scratch_bytes })
    })
}

/// The buffers of a norm pass.
struct NormParts {
    partials: wgpu::Buffer,
    measure: wgpu::Buffer,
    segments: wgpu::Buffer,
    owners: wgpu::Buffer,
    records: wgpu::Buffer,
    supplied: Option<wgpu::Buffer>,
}

impl NormParts {
    fn new(builder: &mut Builder<'_>, norm: &ByNorm, layout: &Layout, table: &[Segment]) -> Self {
        let partial = NormKind::of(norm.norm_type).partial_bytes();
        let records = vec![ClipRecord::UNCLIPPED; table.len()];
        let record_usage = STORAGE.union(UNIFORM).union(COPY_SRC);
        Self {
            partials: builder.zeroed("gradclip.partials", layout.owners.len().max(1) * partial),
            measure: builder.holding("gradclip.measure", UNIFORM.union(COPY_DST), &[Measure::of(norm)]),
            segments: builder.holding("gradclip.segments", STORAGE.union(COPY_DST), table),
            owners: builder.holding("gradclip.owners", STORAGE, or_one(&layout.owners, &0)),
            records: builder.holding("gradclip.records", record_usage, &records),
            supplied: (norm.scope == Scope::Supplied)
                .then(|| builder.holding("gradclip.supplied", STORAGE.union(COPY_DST), &[0.0_f32])),
        }
    }

    /// The steps that leave records: partials and their sums, or what a supplied norm means.
    fn steps(
        &self,
        builder: &Builder<'_>,
        layout: &Layout,
        kind: NormKind,
        segments: usize,
    ) -> Result<Vec<Step>, Error> {
        let Self { partials, measure, segments: table, owners, records, supplied } = self;
        let partials_of = |manner, slots| Kernel::Partials { norm: kind, manner, slots };
        let mut steps = builder.steps(&layout.norm, |_| partials, partials_of)?;
        let (kernel, source) = match supplied {
            Some(supplied) => (Kernel::Supply, supplied),
            None => (Kernel::Finalize { norm: kind }, partials),
        };
        steps.push(builder.dispatch(kernel, [source, measure, table, owners, records], segments)?);
        Ok(steps)
    }

    /// The step that leaves a record for each of so many gradients by itself, and those records.
    fn tensors(
        &self,
        builder: &mut Builder<'_>,
        layout: &Layout,
        kind: NormKind,
        gradients: usize,
    ) -> Result<(Step, wgpu::Buffer), Error> {
        let nothing = Segment { first: 0, count: 0, max_norm: f32::INFINITY };
        let mut table = vec![nothing; gradients.max(1)];
        for (partial, &owner) in (0..).zip(&layout.owners) {
            let segment = &mut table[owner as usize];
            segment.first = if segment.count == 0 { partial } else { segment.first };
            segment.count += 1;
        }
        let records = vec![ClipRecord::UNCLIPPED; table.len()];
        let records = builder.holding("gradclip.tensor_records", STORAGE.union(COPY_SRC), &records);
        let segments = builder.holding("gradclip.tensor_segments", STORAGE, &table);
        let Self { partials, measure, owners, .. } = self;
        let bindings = [partials, measure, &segments, owners, &records];
        let step = builder.dispatch(Kernel::Finalize { norm: kind }, bindings, table.len())?;
        Ok((step, records))
    }
}

/// What each segment sums up, its limit, and how that follows from the limit of its group.
fn segments(layout: &Layout, scope: Scope, limits: &[f32], spans: &[Span]) -> (Vec<Segment>, Vec<Limit>) {
    let limit_of = |index: usize| match scope {
        Scope::Global | Scope::Supplied => Limit::Of { group: index },
        Scope::Tensor | Scope::TensorRms => {
            let Span { group, len, measured, .. } = spans[index];
            scope.limit(group, len, measured)
        }
    };
    let number = |number: usize| u32::try_from(number).expect("partials are counted in 32 bits");
    let segment = |(index, partials): (usize, &Range<usize>)| {
        let limit = limit_of(index);
        let max_norm = limit.among(limits);
        (Segment { first: number(partials.start), count: number(partials.len()), max_norm }, limit)
    };
    if layout.segments.is_empty() {
        // Nothing is clipped by itself where there is nothing; the record says so.
        let nothing = Segment { first: 0, count: 0, max_norm: limits[0] };
        return (vec![nothing], vec![Limit::Of { group: 0 }]);
    }
    layout.segments.iter().enumerate().map(segment).unzip()
}
