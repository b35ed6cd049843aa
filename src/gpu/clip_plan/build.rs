//! The construction of a plan; for a clip by norm, in `norm.rs`.

use wgpu::BufferUsages;

use super::builder::Builder;
use super::norm::by_norm;
use super::{ClipPlan, LossScaleBuffers};
use crate::gpu::device_context::DeviceContext;
use crate::gpu::gradient::{Set, in_address_order};
use crate::gpu::layout::{self, Batch, Request};
use crate::kernels::Kernel;
use crate::kernels::tables::{Bounds, UnscaledBounds, tile_elements};
use crate::operation::Operation;
use crate::{DType, Error};

/// Builds a plan. `operations` has one operation for each group; they differ only in their limits. `moved` is the plan of the same
/// gradients before they moved: the new plan takes over its state.
pub(in crate::gpu) fn build(
    context: &DeviceContext,
    operations: &[Operation],
    set: &Set<'_>,
    moved: Option<&ClipPlan>,
) -> Result<ClipPlan, Error> {
    if let Some(Operation::Norm(norm)) = operations.first() {
        let limits: Vec<f32> = operations.iter().map(Operation::limit).collect();
        return by_norm(context, norm, &limits, set, moved.and_then(|plan| plan.outcome.as_ref()));
    }
    let bounds = operations.iter().filter_map(Operation::bounds).collect::<Vec<_>>();
    let inverse_scale = match operations.first() {
        Some(Operation::Clamp { inverse_scale, .. }) => *inverse_scale,
        _ => None,
    };
    by_value(context, &bounds, inverse_scale, set, moved.and_then(|plan| plan.loss_scale.as_ref()))
}

fn by_value(
    context: &DeviceContext,
    bounds: &[[f32; 2]],
    inverse_scale: Option<f32>,
    set: &Set<'_>,
    kept: Option<&LossScaleBuffers>,
) -> Result<ClipPlan, Error> {
    let segments = bounds.len();
    let request = Request {
        spans: &set.spans,
        order: &in_address_order(&set.spans),
        segment_of: &set.spans.iter().map(|span| span.group).collect::<Vec<_>>(),
        segments,
        measures: false,
        norm_loads_vectors: false,
        partial_bytes: 0,
        tile_elements: tile_elements(set.spans.iter().map(|span| span.len).sum()),
    };
    let layout = layout::lay_out(request, context.limits());
    context.guarded(size_of_val(&layout.tiles[..]) as u64, layout.largest_dispatch(), || {
        let mut builder = Builder::new(context, &set.buffers, &layout.tiles);
        let new = |dtype| match inverse_scale {
            None => {
                let bounds: Vec<_> = bounds.iter().map(|&bounds| Bounds::new(bounds, dtype)).collect();
                builder.buffer("gradclip.bounds", BufferUsages::STORAGE, &bounds)
            }
            Some(inverse) => {
                let usage = BufferUsages::STORAGE.union(BufferUsages::COPY_DST);
                let table = UnscaledBounds::new(inverse, bounds, dtype);
                builder.buffer("gradclip.unscaled_bounds", usage, table.numbers())
            }
        };
        let buffers = match kept {
            Some(kept) => {
                builder.bytes += kept.buffers.iter().map(wgpu::Buffer::size).sum::<u64>();
                kept.buffers.clone()
            }
            None => [DType::F32, DType::F16, DType::BF16].map(new),
        };
        let [f32, f16, bf16] = &buffers;
        let bounds_of = |_, batch: &Batch| match batch.format.dtype {
            DType::F32 => f32,
            DType::F16 => f16,
            DType::BF16 => bf16,
        };
        let segmented = segments > 1;
        let clamp = |&Batch { format, .. }: &Batch, slots| match inverse_scale {
            None => Kernel::Clamp { segmented, format, slots },
            Some(_) => Kernel::UnscaleClamp { segmented, format, slots },
        };
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
            loss_scale: inverse_scale
                .map(|_| LossScaleBuffers { checked_device: context.checked_device().clone(), buffers }),
            scratch_bytes,
            labels: set.labels.clone(),
            origin: None,
        })
    })
}
