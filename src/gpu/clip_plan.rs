//! `ClipPlan`: the bind groups of a set of gradients, ready to be encoded step after step.

mod build;
mod builder;
mod norm;
mod outputs;
mod update;

use std::sync::Arc;

use wgpu::CommandEncoder;

use super::error_scope::CheckedDevice;
use super::labels::Labels;
use super::read_back::Results;
use crate::clip::Limit;

#[cfg(test)]
pub(super) use build::Bounds;
pub(super) use build::build;
pub(super) use norm::{Measure, Segment};

/// How to clip one set of gradients: made once by [`Clipper::prepare`](crate::Clipper::prepare), encoded at every step.
///
/// Encoding only records dispatches: it does not submit, wait, allocate or fail. The encoder must belong to the clipper's
/// device, which wgpu checks only when the encoder is finished. The dispatches run in the order of the command buffer: after
/// the backward pass that was encoded or submitted before, and before the optimizer that comes after.
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
    labels: Labels,
}

/// What a clip by a norm works with from step to step.
#[derive(Debug)]
struct Outcome {
    checked_device: Arc<CheckedDevice>,
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
    /// Measures the gradients and clips them.
    ///
    /// A clip by global norm reads every gradient once; if the norm exceeds the limit it reads and writes them once
    /// more. With [`Clip::coefficient_only`](crate::Clip::coefficient_only) it only reads them. A clip by value reads
    /// every gradient once and writes what exceeds its bounds.
    pub fn encode(&self, encoder: &mut CommandEncoder) {
        let apply: &[Step] = if self.coefficient_only { &[] } else { &self.apply };
        if apply.len() > 1 {
            // Within a pass wgpu has a barrier before each dispatch that changes the state of a buffer, as each of these does,
            // so that it starts on an empty GPU. Between two passes it has one for all.
            self.encode_norm(encoder);
            self.encode_scale(encoder);
        } else {
            run(encoder, "gradclip", self.norm.iter().chain(apply));
        }
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

    /// How many dispatches [`encode`](Self::encode) records.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        self.norm.len() + if self.coefficient_only { 0 } else { self.apply.len() }
    }

    /// Returns the label of a gradient by its index in the list that the plan was prepared for:
    /// [`ClipRecord::first_non_finite`](crate::ClipRecord::first_non_finite) and the order of
    /// [`TensorStats`](crate::TensorStats) are such indices. None without a [label](crate::Gradient::label).
    #[must_use]
    pub fn label(&self, gradient: usize) -> Option<&str> {
        self.labels.get(gradient)
    }

    /// What the plan takes of the device's memory, in bytes: tables, partials, parameters and the record.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_bytes
    }
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
