//! The construction of a plan; for a clip by norm, in `norm.rs`.

use wgpu::BufferUsages;

use super::ClipPlan;
use super::builder::Builder;
use super::norm::by_norm;
use crate::gpu::device_context::DeviceContext;
use crate::gpu::gradient::{Set, in_address_order};
use crate::gpu::layout::{self, Batch, Request};
use crate::kernels::Kernel;
use crate::kernels::tables::Bounds;
use crate::operation::Operation;
use crate::{DType, Error};

/// Builds a plan. `operations` has one operation for each group; they differ only in their limits.
pub(in crate::gpu) fn build(
    context: &DeviceContext,
    operations: &[Operation],
    set: &Set<'_>,
) -> Result<ClipPlan, Error> {
    if let Some(Operation::Norm(norm)) = operations.first() {
        let limits: Vec<f32> = operations.iter().map(Operation::limit).collect();
        return by_norm(context, norm, &limits, set);
    }
    let bounds = operations.iter().filter_map(Operation::bounds).collect::<Vec<_>>();
    by_value(context, &bounds, set)
}

fn by_value(context: &DeviceContext, bounds: &[[f32; 2]], set: &Set<'_>) -> Result<ClipPlan, Error> {
    let segments = bounds.len();
    let request = Request {
        spans: &set.spans,
        order: &in_address_order(&set.spans),
        segment_of: &set.spans.iter().map(|span| span.group).collect::<Vec<_>>(),
        segments,
        measures: false,
        norm_loads_vectors: false,
        partial_bytes: 0,
    };
    let layout = layout::lay_out(request, context.limits());
    context.guarded(size_of_val(&layout.tiles[..]) as u64, layout.largest_dispatch(), || {
        let mut builder = Builder::new(context, &set.buffers, &layout.tiles);
        let [f32, f16, bf16] = [DType::F32, DType::F16, DType::BF16].map(|dtype| {
            let bounds: Vec<_> = bounds.iter().map(|&bounds| Bounds::new(bounds, dtype)).collect();
            builder.buffer("gradclip.bounds", BufferUsages::STORAGE, &bounds)
        });
        let bounds_of = |_, batch: &Batch| match batch.format.dtype {
            DType::F32 => &f32,
            DType::F16 => &f16,
            DType::BF16 => &bf16,
        };
        let segmented = segments > 1;
        let clamp = |format, slots| Kernel::Clamp { segmented, format, slots };
        let apply = builder.batches(&layout.apply, bounds_of, clamp)?;
        let scratch_bytes = builder.bytes;
        Ok(ClipPlan {
            parts: Vec::new(),
            in_parts: false,
            resets: false,
            record: Vec::new(),
            apply,
            small: None,
            coefficient_only: false,
            outcome: None,
            scratch_bytes,
            labels: set.labels.clone(),
        })
    })
}
