//! How a plan of a clip by norm is made.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use wgpu::BufferUsages;

use super::builder::{Builder, or_one};
use super::{ClipPlan, Outcome, Step};
use crate::clip::{ByNorm, Limit, Scope};
use crate::gpu::device_context::DeviceContext;
use crate::gpu::gradient::{Set, Span, in_address_order};
use crate::gpu::kernels::{Finding, Kernel, Leaves};
use crate::gpu::layout::{self, Layout, Request};
use crate::gpu::read_back::Results;
use crate::{ClipRecord, Error, NonFinite, NormHistory, StepCounts, TensorStats};

const STORAGE: BufferUsages = BufferUsages::STORAGE;
const UNIFORM: BufferUsages = BufferUsages::UNIFORM;
const COPY_SRC: BufferUsages = BufferUsages::COPY_SRC;
const COPY_DST: BufferUsages = BufferUsages::COPY_DST;

/// Of what lasts from step to step, and can be saved and restored.
const KEPT: BufferUsages = STORAGE.union(COPY_SRC).union(COPY_DST);

/// `NOT_SUPPLIED` of `supply.wgsl`: the bits of the supplied norm until there is one.
const NOT_SUPPLIED: u32 = u32::MAX;

/// `Segment` of `segment.wgsl`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(in crate::gpu) struct Segment {
    pub(in crate::gpu) first: u32,
    pub(in crate::gpu) count: u32,
    pub(in crate::gpu) max_norm: f32,
}

impl Segment {
    fn new(partials: &Range<usize>, max_norm: f32) -> Self {
        let number = |number: usize| u32::try_from(number).expect("partials are counted in 32 bits");
        Self { first: number(partials.start), count: number(partials.len()), max_norm }
    }
}

/// `Measure` of `segment.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::gpu) struct Measure {
    pub(in crate::gpu) epsilon: f32,
    pub(in crate::gpu) policy: u32,
    pub(in crate::gpu) inverse_scale: f32,
    pub(in crate::gpu) floor: f32,
    pub(in crate::gpu) rate: f32,
    pub(in crate::gpu) threshold: f32,
    pub(in crate::gpu) warm_up: u32,
}

impl Measure {
    fn of(norm: &ByNorm) -> Self {
        // The POLICY_* of `conclude.wgsl`. What is an error on the host is left alone on the device.
        let policy = match norm.non_finite {
            NonFinite::Propagate => 0,
            NonFinite::Skip | NonFinite::Error => 1,
            NonFinite::Zero => 2,
            NonFinite::Poison => 3,
        };
        let floor = if let Scope::Parameter { floor } = norm.scope { floor } else { 0.0 };
        let z_clip = norm.z_clip.unwrap_or_default();
        Self {
            epsilon: norm.epsilon,
            policy,
            inverse_scale: norm.inverse_scale,
            floor,
            rate: 1.0 - z_clip.alpha,
            threshold: z_clip.z_threshold,
            warm_up: z_clip.warm_up,
        }
    }
}

/// What is measured, and what has a record.
struct Units {
    /// The gradients, or their rows; and after them the same of their parameters.
    spans: Vec<Span>,
    /// Of each span: the segment that it belongs to. The first segments have the records.
    segment_of: Vec<usize>,
    segments: usize,
    /// Of each record: how its limit follows from those of the groups.
    limits: Vec<Limit>,
}

impl Units {
    fn of(scope: Scope, groups: usize, set: &Set<'_>) -> Self {
        if scope.is_together() {
            let segment_of = set.spans.iter().map(|span| span.group).collect();
            let limits = (0..groups).map(|group| Limit::Of { group }).collect();
            return Self { spans: set.spans.clone(), segment_of, segments: groups, limits };
        }
        let rows = |(span, &rows): (&Span, &u64)| span.rows(rows);
        let gradients: Vec<Span> = set.spans.iter().zip(&set.rows).flat_map(rows).collect();
        let limit = |span: &Span| scope.limit(span.group, span.len, span.measured);
        let limits = gradients.iter().map(limit).collect();
        let parameters = set.parameters.iter().zip(&set.spans).zip(&set.rows).flat_map(
            |((parameter, gradient), &rows)| {
                // What is not measured need not have one.
                let nothing = Span { len: 0, ..*gradient };
                parameter.unwrap_or(nothing).rows(rows)
            },
        );
        let spans: Vec<Span> = gradients.iter().copied().chain(parameters).collect();
        Self { segment_of: (0..spans.len()).collect(), segments: spans.len(), limits, spans }
    }

    fn lay_out(&self, clipper: &DeviceContext, measures: bool, finding: Finding) -> Layout {
        let request = Request {
            spans: &self.spans,
            order: &in_address_order(&self.spans),
            segment_of: &self.segment_of,
            segments: self.segments,
            measures,
            norm_reads_vectors: finding.reads_vectors(),
        };
        layout::lay_out(request, clipper.limits())
    }
}

pub(super) fn by_norm(
    clipper: &DeviceContext,
    norm: &ByNorm,
    max_norms: &[f32],
    set: &Set<'_>,
) -> Result<ClipPlan, Error> {
    let finding = Finding::of(norm.norm_type, norm.tensor_stats);
    if !norm.scope.is_together() {
        // Before the host makes a list of them.
        let records = set.rows.iter().fold(0_u64, |records, &rows| records.saturating_add(rows));
        clipper.check_scratch(records.saturating_mul(size_of::<ClipRecord>() as u64))?;
    }
    let units = Units::of(norm.scope, max_norms.len(), set);
    let layout = units.lay_out(clipper, norm.scope != Scope::Supplied, finding);
    let scratch = size_of_val(&layout.tiles[..])
        + layout.owners.len() * finding.partial_bytes()
        + size_of_val(&layout.places[..])
        + units.segments * size_of::<ClipRecord>();
    clipper.guarded(scratch as u64, layout.largest_dispatch(), || {
        let mut builder = Builder::new(clipper, &set.buffers, &layout.tiles);
        let limits = units.limits.iter().map(|limit| limit.among(max_norms));
        let table = layout.segments.iter().zip(limits).map(|(partials, limit)| Segment::new(partials, limit));
        let table: Vec<_> = table.collect();
        // The plain kernels for any p have but one size.
        let wide = clipper.limits().wide && finding.reads_vectors() && layout.wants_wide_workgroups();
        let (layout, records) = (&layout, table.len());
        let mut stages = Stages { norm, finding, layout, wide, records, steps: Vec::new() };
        // Nothing is clipped by itself where there is nothing; the record says so.
        let table = or_one(&table, &Segment { first: 0, count: 0, max_norm: max_norms[0] }).to_vec();

        let buffers = Buffers::new(&mut builder, &stages, &table);
        let supplied = stages.find(&mut builder, &buffers)?;
        stages.relate_to_parameters(&mut builder, &buffers)?;
        let histories = stages.adapt(&mut builder, &buffers)?;
        let step_counts = stages.count(&mut builder, &buffers)?;
        let tensor_stats = stages.tensor_stats(&mut builder, &buffers, set.spans.len())?;
        let segmented = table.len() > 1;
        let scale = |manner, slots| Kernel::Scale { segmented, manner, slots };
        let apply = builder.steps(&layout.apply, |_, _| &buffers.records.buffer, scale)?;
        let (norm_pass, records) = (stages.steps, stages.records);
        let Buffers { measure, segments, records: record_buffer, .. } = buffers;
        let outcome = Outcome {
            checked_device: clipper.checked_device().clone(),
            is_error: norm.non_finite == NonFinite::Error,
            together: norm.scope.is_together(),
            groups: max_norms.len(),
            limits: units.limits,
            table,
            count: records,
            records: record_buffer,
            measure,
            segments,
            supplied,
            histories,
            step_counts,
            tensor_stats,
        };
        Ok(ClipPlan {
            norm: norm_pass,
            apply,
            coefficient_only: norm.coefficient_only,
            outcome: Some(outcome),
            scratch_bytes: builder.bytes,
            labels: set.labels.clone(),
        })
    })
}

/// What the stages that leave or change records share.
struct Buffers {
    /// The partials, bank by bank.
    banks: Vec<wgpu::Buffer>,
    /// Where in them each partial is, if there are several.
    places: Option<wgpu::Buffer>,
    owners: wgpu::Buffer,
    measure: wgpu::Buffer,
    segments: wgpu::Buffer,
    records: Results,
}

impl Buffers {
    fn new(builder: &mut Builder<'_>, stages: &Stages<'_>, table: &[Segment]) -> Self {
        let Stages { norm, finding, layout, records, .. } = stages;
        let owners = or_one(&layout.owners, &0);
        let usage = STORAGE.union(UNIFORM).union(COPY_SRC);
        Self {
            banks: layout
                .banks
                .iter()
                .map(|&len| builder.zeroed("gradclip.partials", len.max(1) * finding.partial_bytes()))
                .collect(),
            places: (layout.banks.len() > 1)
                .then(|| builder.holding("gradclip.places", STORAGE, &layout.places)),
            owners: builder.holding("gradclip.owners", STORAGE, owners),
            measure: builder.holding("gradclip.measure", UNIFORM.union(COPY_DST), &[Measure::of(norm)]),
            segments: builder.holding("gradclip.segments", STORAGE.union(COPY_DST), table),
            records: builder.results("gradclip.records", usage, ClipRecord::NOTHING_MEASURED, *records),
        }
    }

    /// What a finalize kernel binds: partials, and besides them these four.
    fn finalizing<'a>(&'a self, others: [&'a wgpu::Buffer; 4]) -> Vec<&'a wgpu::Buffer> {
        let rest = self.places.iter().chain(&self.banks[1..]);
        [&self.banks[0]].into_iter().chain(others).chain(rest).collect()
    }

    /// What a stage binds that makes records from this, or changes them by it.
    fn with<'a>(&'a self, first: &'a wgpu::Buffer) -> [&'a wgpu::Buffer; 5] {
        [first, &self.measure, &self.segments, &self.owners, &self.records.buffer]
    }
}

/// The stages of a norm pass: each adds its dispatches, if the clip asks for it.
struct Stages<'a> {
    norm: &'a ByNorm,
    finding: Finding,
    layout: &'a Layout,
    /// Whether wide workgroups join the partials.
    wide: bool,
    /// How many records mean something.
    records: usize,
    steps: Vec<Step>,
}

impl Stages<'_> {
    /// Records, from partials and their sums, or from a norm that is supplied; returns where that goes.
    fn find(&mut self, builder: &mut Builder<'_>, buffers: &Buffers) -> Result<Option<wgpu::Buffer>, Error> {
        let finding = self.finding;
        if self.norm.scope == Scope::Supplied {
            let supplied = builder.holding("gradclip.supplied", STORAGE.union(COPY_DST), &[NOT_SUPPLIED]);
            self.steps.push(builder.per_invocation(
                Kernel::Supply,
                &buffers.with(&supplied),
                self.records,
            )?);
            return Ok(Some(supplied));
        }
        let partials = |manner, slots| Kernel::Partials { finding, manner, slots };
        let bank = |batch, _: &_| &buffers.banks[self.layout.bank_of(batch)];
        self.steps.extend(builder.steps(&self.layout.norm, bank, partials)?);
        let [_, others @ ..] = buffers.with(&buffers.banks[0]);
        let finalize = self.finalize(Leaves::Record);
        self.steps.push(builder.per_workgroup(finalize, &buffers.finalizing(others), self.records)?);
        Ok(None)
    }

    fn finalize(&self, leaves: Leaves) -> Kernel {
        // Statistics are of many gradients, most of them small.
        let wide = self.wide && leaves == Leaves::Record;
        Kernel::Finalize { finding: self.finding, leaves, banks: self.layout.banks.len(), wide }
    }

    /// Limits that are relative to the norms of the parameters, which have records of their own.
    fn relate_to_parameters(&mut self, builder: &mut Builder<'_>, buffers: &Buffers) -> Result<(), Error> {
        if !matches!(self.norm.scope, Scope::Parameter { .. }) {
            return Ok(());
        }
        let parameters = &self.layout.segments[self.records..];
        let table: Vec<_> = parameters.iter().map(|partials| Segment::new(partials, f32::INFINITY)).collect();
        let table = or_one(&table, &Segment { first: 0, count: 0, max_norm: f32::INFINITY });
        // No loss scale is in a parameter.
        let measure = Measure { inverse_scale: 1.0, ..Measure::of(self.norm) };
        let measure = builder.holding("gradclip.parameter_measure", UNIFORM, &[measure]);
        let segments = builder.holding("gradclip.parameter_segments", STORAGE, table);
        let unclipped = vec![ClipRecord::UNCLIPPED; table.len()];
        let records = builder.holding("gradclip.parameter_records", STORAGE, &unclipped);
        let bindings = buffers.finalizing([&measure, &segments, &buffers.owners, &records]);
        let finalize = self.finalize(Leaves::Record);
        self.steps.push(builder.per_workgroup(finalize, &bindings, self.records)?);
        self.steps.push(builder.per_invocation(Kernel::Relative, &buffers.with(&records), self.records)?);
        Ok(())
    }

    /// Limits that follow the norms of past steps.
    fn adapt(&mut self, builder: &mut Builder<'_>, buffers: &Buffers) -> Result<Option<Results>, Error> {
        if self.norm.z_clip.is_none() {
            return Ok(None);
        }
        let histories = builder.results("gradclip.histories", KEPT, NormHistory::default(), self.records);
        let bindings = buffers.with(&histories.buffer);
        self.steps.push(builder.per_invocation(Kernel::Adapt, &bindings, self.records)?);
        Ok(Some(histories))
    }

    fn count(&mut self, builder: &mut Builder<'_>, buffers: &Buffers) -> Result<Option<Results>, Error> {
        if !self.norm.count_steps {
            return Ok(None);
        }
        let counts = builder.results("gradclip.step_counts", KEPT, StepCounts::default(), self.records);
        let bindings = [&buffers.records.buffer, &counts.buffer];
        self.steps.push(builder.per_invocation(Kernel::Count, &bindings, self.records)?);
        Ok(Some(counts))
    }

    /// What each of so many gradients is by itself.
    fn tensor_stats(
        &mut self,
        builder: &mut Builder<'_>,
        buffers: &Buffers,
        gradients: usize,
    ) -> Result<Option<Results>, Error> {
        if !self.norm.tensor_stats {
            return Ok(None);
        }
        let nothing = Segment { first: 0, count: 0, max_norm: f32::INFINITY };
        let mut table = vec![nothing; gradients.max(1)];
        // The partials of a gradient follow on one another; those of the parameters come after all of them.
        let own = self.layout.segments[..self.records].iter().map(|partials| partials.end).max().unwrap_or(0);
        for (partial, &owner) in (0..).zip(&self.layout.owners[..own]) {
            let segment = &mut table[owner as usize];
            segment.first = if segment.count == 0 { partial } else { segment.first };
            segment.count += 1;
        }
        let usage = STORAGE.union(COPY_SRC);
        let stats = builder.results("gradclip.tensor_stats", usage, TensorStats::UNMEASURED, gradients);
        let segments = builder.holding("gradclip.tensor_segments", STORAGE, &table);
        let bindings = buffers.finalizing([&buffers.measure, &segments, &buffers.owners, &stats.buffer]);
        self.steps.push(builder.per_workgroup(self.finalize(Leaves::Stats), &bindings, gradients)?);
        Ok(Some(stats))
    }
}
