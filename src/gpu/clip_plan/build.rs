//! How a plan is made: what it lays out, which buffers it has, and which dispatches. Those of a clip by norm are made in
//! `norm.rs`.

use bytemuck::{Pod, Zeroable};
use wgpu::BufferUsages;

use super::ClipPlan;
use super::builder::Builder;
use super::norm::by_norm;
use crate::clip::Operation;
use crate::gpu::device_context::DeviceContext;
use crate::gpu::gradient::{Set, in_address_order};
use crate::gpu::kernels::Kernel;
use crate::gpu::layout::{self, Batch, Request};
use crate::{DType, Error};

/// `Bounds` of `clamp.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::gpu) struct Bounds {
    pub(in crate::gpu) low: f32,
    pub(in crate::gpu) high: f32,
}

/// Allocates and binds. Of the operations, one for each group, only the limits differ.
pub(in crate::gpu) fn build(
    clipper: &DeviceContext,
    operations: &[Operation],
    set: &Set<'_>,
) -> Result<ClipPlan, Error> {
    if let Some(Operation::Norm(norm)) = operations.first() {
        let limits: Vec<f32> = operations.iter().map(Operation::limit).collect();
        return by_norm(clipper, norm, &limits, set);
    }
    let bounds = operations.iter().filter_map(Operation::bounds).collect::<Vec<_>>();
    by_value(clipper, &bounds, set)
}

fn by_value(clipper: &DeviceContext, bounds: &[[f32; 2]], set: &Set<'_>) -> Result<ClipPlan, Error> {
    let segments = bounds.len();
    let request = Request {
        spans: &set.spans,
        order: &in_address_order(&set.spans),
        segment_of: &set.spans.iter().map(|span| span.group).collect::<Vec<_>>(),
        segments,
        measures: false,
        norm_reads_vectors: false,
    };
    let layout = layout::lay_out(request, clipper.limits());
    clipper.guarded(size_of_val(&layout.tiles[..]) as u64, layout.largest_dispatch(), || {
        let mut builder = Builder::new(clipper, &set.buffers, &layout.tiles);
        let [f32, f16, bf16] = [DType::F32, DType::F16, DType::BF16].map(|dtype| {
            let rounded = |bounds: &[f32; 2]| bounds.map(|bound| dtype.round(bound));
            let bounds: Vec<_> = bounds.iter().map(rounded).map(|[low, high]| Bounds { low, high }).collect();
            builder.holding("gradclip.bounds", BufferUsages::STORAGE, &bounds)
        });
        let bounds_of = |_, batch: &Batch| match batch.manner.dtype {
            DType::F32 => &f32,
            DType::F16 => &f16,
            DType::BF16 => &bf16,
        };
        let segmented = segments > 1;
        let clamp = |manner, slots| Kernel::Clamp { segmented, manner, slots };
        let apply = builder.steps(&layout.apply, bounds_of, clamp)?;
        let scratch_bytes = builder.bytes;
        Ok(ClipPlan {
            norm: Vec::new(),
            apply,
            coefficient_only: false,
            outcome: None,
            scratch_bytes,
            labels: set.labels.clone(),
        })
    })
}
