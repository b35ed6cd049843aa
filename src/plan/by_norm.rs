//! The plan of a clip by norm: its buffers and its stages.

use super::builder::{Builder, or_one, window};
use super::gradient::{Set, Span};
use super::layout::{Bank, Batch, Layout};
use super::passes::{BoundRange, Dispatch};
use super::segment_map::SegmentMap;
use super::usage::{COPY_DST, COPY_SRC, STATE, STORAGE, UNIFORM};
use super::{Limits, Outcome, Passes, PlanBuffer, TilePartials};
use crate::kernels::tables::{NormParams, Segment, block_rows};
use crate::kernels::{Buffer, Kernel, Output, Reduction};
use crate::operation::{ByNorm, Scope};
use crate::{AutoClip, ClipRecord, Error, NonFinite, NormHistory, NormWindow, StepCounts, TensorStats};

/// Plans a clip with one group for each limit.
pub(super) fn plan(
    norm: &ByNorm,
    max_norms: &[f32],
    set: &Set,
    limits: Limits,
) -> Result<(Vec<PlanBuffer>, Passes, Outcome), Error> {
    let record_bytes = size_of::<ClipRecord>() + norm.auto_clip.map_or(0, AutoClip::state_bytes);
    if !norm.scope.is_together() {
        // Checked before the host allocates the table of segments. One of rows and columns is 1.
        let units = set.spans.iter().map(|span| span.rows.max(span.columns));
        let records = units.fold(0_u64, u64::saturating_add);
        limits.check_scratch(records.saturating_mul(record_bytes as u64))?;
        check_columns(limits, set)?;
    }
    let reduction = norm.reduction();
    let map = SegmentMap::new(norm.scope, max_norms.len(), set);
    let layout = map.lay_out(limits, (norm.scope != Scope::Supplied).then_some(reduction))?;
    let scratch = size_of_val(&layout.tiles[..])
        + layout.gradient_of_partial.len() * reduction.partial_bytes()
        + size_of_val(&layout.partial_locations[..])
        + map.segments * record_bytes;
    limits.check_scratch(scratch as u64)?;
    limits.check_workgroups(layout.largest_dispatch())?;

    let mut builder = Builder::new(limits, &layout.tiles);
    let table = map.table(&layout.segments, max_norms);
    let records = table.len();
    // Without records there is still one segment, since a buffer must not be empty.
    let table = or_one(&table, &Segment { max_norm: max_norms[0], ..Segment::EMPTY }).to_vec();
    let buffers = Buffers::new(&mut builder, norm, reduction, &layout, (&table, records));
    let wide = limits.wide && reduction.loads_vectors() && layout.wants_wide_workgroups();
    let resets = set.parts > 0 || set.spans.iter().any(|span| span.partials.is_some());
    let mut stages = Stages {
        norm,
        reduction,
        layout: &layout,
        buffers,
        wide,
        records,
        resets,
        concluded: false,
        parts: (0..set.parts.max(1)).map(|_| Vec::new()).collect(),
        steps: Vec::new(),
    };

    let (mut supplied, mut tensor_stats) = (None, None);
    if norm.scope == Scope::Supplied {
        supplied = Some(stages.supplied_norm(&mut builder));
    } else {
        stages.partials(&builder);
        // Before the records, which may update the loss scale.
        tensor_stats = stages.tensor_stats(&mut builder, set.spans.len());
        stages.records(&builder);
    }
    stages.agc(&mut builder);
    let histories = stages.z_clip(&mut builder);
    let norm_windows = stages.auto_clip(&mut builder);
    stages.conclude(&builder);
    let small = stages.small(&builder);

    let Stages { buffers, parts, steps, .. } = stages;
    let tile_partials =
        set.total_elements.map(|_| TilePartials::new(&mut builder, &buffers.banks, &layout, reduction));
    let segmented = table.len() > 1;
    let scale = |&Batch { format, columns, .. }: &Batch, slots| {
        if columns {
            Kernel::ScaleColumns { format, slots }
        } else {
            Kernel::Scale { segmented, format, slots }
        }
    };
    let scale = builder.batches(&layout.apply, &|_, _| buffers.records, &scale);
    let outcome = Outcome {
        is_error: norm.non_finite == NonFinite::Error,
        together: norm.scope.is_together(),
        groups: max_norms.len(),
        limits: map.limits,
        table,
        count: records,
        records: buffers.records,
        norm_params: buffers.norm_params,
        has_dynamic_scale: norm.dynamic_loss_scale.is_some(),
        segments: buffers.segments,
        supplied,
        histories,
        norm_windows,
        step_counts: buffers.step_counts,
        tensor_stats,
        tile_partials,
    };
    let passes = Passes {
        in_parts: set.parts > 0,
        resets,
        coefficient_only: norm.coefficient_only,
        ..Passes::new(parts, steps, scale, small)
    };
    Ok((builder.finish(), passes, outcome))
}

/// Checks that the blocks of gradients with columns fit into a binding.
fn check_columns(limits: Limits, set: &Set) -> Result<(), Error> {
    let Limits { binding_bytes, alignment, .. } = limits;
    let spans = set.spans.iter().chain(set.parameters.iter().flatten());
    for &Span { columns, len, dtype, .. } in spans.filter(|span| span.columns > 1) {
        let needed = len.min(block_rows(columns) * columns) * dtype.size() + alignment;
        if needed > binding_bytes {
            let name = "max_storage_buffer_binding_size";
            return Err(Error::DeviceLimit {
                what: "a clip of columns",
                name,
                needed,
                allowed: binding_bytes,
            });
        }
    }
    Ok(())
}

/// A bank of partials.
#[derive(Clone, Copy)]
enum Partials {
    Own(usize),
    /// Those that another kernel leaves.
    Given(BoundRange),
}

/// The buffers that several stages share.
struct Buffers {
    /// The partials, by bank.
    banks: Vec<Partials>,
    /// Only with several banks.
    partial_locations: Option<usize>,
    gradient_of_partial: usize,
    norm_params: usize,
    segments: usize,
    records: usize,
    /// Only if a rule keeps state.
    step_counts: Option<usize>,
}

impl Buffers {
    fn new(
        builder: &mut Builder,
        norm: &ByNorm,
        reduction: Reduction,
        layout: &Layout,
        (table, records): (&[Segment], usize),
    ) -> Self {
        let gradients = or_one(&layout.gradient_of_partial, &0);
        // A sharded clip writes records.
        let record_usage = STORAGE | UNIFORM | COPY_SRC | COPY_DST;
        Self {
            banks: layout
                .banks
                .iter()
                .map(|bank| match bank {
                    Bank::Own(len) => {
                        let size = (*len).max(1) * reduction.partial_bytes();
                        Partials::Own(builder.zeroed("gradclip.partials", STORAGE | COPY_SRC, size))
                    }
                    Bank::Given(range) => Partials::Given(window(range)),
                })
                .collect(),
            partial_locations: (layout.banks.len() > 1)
                .then(|| builder.buffer("gradclip.partial_locations", STORAGE, &layout.partial_locations)),
            gradient_of_partial: builder.buffer("gradclip.gradient_of_partial", STORAGE, gradients),
            norm_params: builder.results("gradclip.norm_params", STATE | UNIFORM, NormParams::new(norm), 1),
            // The same gradients have the same partials, wherever they are: the table stays, with its limits.
            segments: builder.kept("gradclip.segments", STORAGE | COPY_DST, table),
            records: builder.results("gradclip.records", record_usage, ClipRecord::NOTHING_MEASURED, records),
            step_counts: norm
                .keeps_step_counts()
                .then(|| builder.results("gradclip.step_counts", STATE, StepCounts::default(), records)),
        }
    }

    /// Returns the range to bind for a buffer of the kernels.
    fn get(&self, builder: &Builder, buffer: Buffer) -> BoundRange {
        builder.whole(match buffer {
            Buffer::Bank(bank) => match self.banks[bank] {
                Partials::Own(buffer) => buffer,
                Partials::Given(range) => return range,
            },
            Buffer::PartialLocations => self.partial_locations.expect("bound with several banks"),
            Buffer::GradientOfPartial => self.gradient_of_partial,
            Buffer::NormParams => self.norm_params,
            Buffer::Segments => self.segments,
            Buffer::Records => self.records,
            Buffer::StepCounts => self.step_counts.expect("bound only to conclude a step"),
            buffer => unreachable!("{buffer:?} belongs to a single stage"),
        })
    }
}

impl TilePartials {
    fn new(builder: &mut Builder, banks: &[Partials], layout: &Layout, reduction: Reduction) -> Self {
        let own = banks.iter().filter_map(|bank| match bank {
            Partials::Own(buffer) => Some(*buffer),
            Partials::Given(_) => None,
        });
        let banks: Vec<_> = own.collect();
        let bytes: u64 = banks.iter().map(|&bank| builder.bytes(bank)).sum();
        let words = vec![0_u32; usize::try_from(bytes / 4).expect("the partials fit into memory").max(1)];
        // Not kept: gradients that move may be in other banks.
        let usage = COPY_SRC | COPY_DST;
        let readable = size_of_val(&words[..]);
        let copy = builder.readable("gradclip.tile_partials", usage, words, readable);
        let locations = layout.partial_locations.clone();
        Self { banks, locations, words: reduction.partial_bytes() / 4, copy }
    }
}

/// The stages of a norm pass. Each method adds the dispatches of one, if the clip needs it.
struct Stages<'a> {
    norm: &'a ByNorm,
    reduction: Reduction,
    layout: &'a Layout,
    buffers: Buffers,
    /// Whether wide workgroups reduce the partials.
    wide: bool,
    /// The number of records; 0 if each gradient has its own record and there are no gradients.
    records: usize,
    /// Whether partials are reset after they have been read.
    resets: bool,
    /// Whether a stage has concluded the step.
    concluded: bool,
    /// The dispatches that measure each part.
    parts: Vec<Vec<Dispatch>>,
    /// Those that follow.
    steps: Vec<Dispatch>,
}

impl Stages<'_> {
    /// Reduces gradients to partials.
    fn partials(&mut self, builder: &Builder) {
        let reduction = self.reduction;
        let partials = |&Batch { format, columns, .. }: &Batch, slots| {
            if columns {
                Kernel::PartialsColumns { reduction, dtype: format.dtype, slots }
            } else {
                Kernel::Partials { reduction, format, slots }
            }
        };
        let bank = |batch, _: &_| match self.buffers.banks[self.layout.bank_of(batch)] {
            Partials::Own(buffer) => buffer,
            Partials::Given(_) => unreachable!("the first banks are those of the plan"),
        };
        let dispatches = builder.batches(&self.layout.norm, &bank, &partials);
        for (batch, dispatch) in self.layout.norm.iter().zip(dispatches) {
            self.parts[batch.part].push(dispatch);
        }
    }

    /// Reduces partials to records. If there is one record, and its limit is final, the same dispatch concludes the step.
    fn records(&mut self, builder: &Builder) {
        let is_final = self.has_final_limits();
        let concluding = self.finalize(Output::RecordAndState);
        self.concluded = self.buffers.step_counts.is_some()
            && self.records == 1
            && is_final
            && builder.limits().allows(concluding);
        let finalize = if self.concluded { concluding } else { self.finalize(Output::Record) };
        let range = |buffer| self.buffers.get(builder, buffer);
        self.steps.push(builder.per_workgroup(finalize, self.records, &range));
    }

    /// Whether no stage changes the limits of the records.
    fn has_final_limits(&self) -> bool {
        !matches!(self.norm.scope, Scope::Parameter { .. })
            && self.norm.z_clip.is_none()
            && self.norm.auto_clip.is_none()
    }

    /// Measures, concludes and scales in one dispatch, if the layout, the clip and the device allow that. The plan has the separate
    /// stages too, for the halves of a step.
    fn small(&self, builder: &Builder) -> Option<Dispatch> {
        let batch = self.layout.small.as_ref()?;
        let output = if self.buffers.step_counts.is_some() { Output::RecordAndState } else { Output::Record };
        let reduction = self.reduction;
        let kernel = |format, slots| Kernel::SmallClip { reduction, output, format, slots };
        // In parts, or with given partials, a missing part must not be measured here.
        if self.norm.coefficient_only || self.norm.tensor_stats || self.resets || !self.has_final_limits() {
            return None;
        }
        builder.single_workgroup(batch, &kernel, &|buffer| self.buffers.get(builder, buffer))
    }

    fn finalize(&self, output: Output) -> Kernel {
        // Statistics have many segments, most of them small.
        let wide = self.wide && output != Output::TensorStats;
        // The statistics come first; the records are the last to read the partials.
        let resets = self.resets && output != Output::TensorStats;
        let banks = self.layout.banks.len();
        Kernel::Finalize { reduction: self.reduction, output, banks, wide, resets }
    }

    /// Makes records from a supplied norm. Returns the buffer of that norm.
    fn supplied_norm(&mut self, builder: &mut Builder) -> usize {
        let supplied = builder.kept("gradclip.supplied_norm", STORAGE | COPY_DST, &[ClipRecord::NO_NORM]);
        self.per_record(builder, Kernel::SuppliedNorm, (Buffer::SuppliedNorm, supplied));
        supplied
    }

    /// Adaptive gradient clipping: measures the parameters, then replaces the limits.
    fn agc(&mut self, builder: &mut Builder) {
        if !matches!(self.norm.scope, Scope::Parameter { .. }) {
            return;
        }
        let partials = &self.layout.segments[self.records..];
        let table: Vec<_> = partials.iter().map(|partials| Segment::new(partials, f32::INFINITY)).collect();
        let table = or_one(&table, &Segment::EMPTY);
        // Parameters have no loss scale.
        let norm_params = NormParams { inverse_scale: 1.0, ..NormParams::new(self.norm) };
        let norm_params = builder.buffer("gradclip.parameter_norm_params", UNIFORM, &[norm_params]);
        let segments = builder.buffer("gradclip.parameter_segments", STORAGE, table);
        let unclipped = vec![ClipRecord::UNCLIPPED; table.len()];
        let records = builder.buffer("gradclip.parameter_records", STORAGE, &unclipped);
        let finalize = self.finalize(Output::Record);
        self.steps.push(builder.per_workgroup(finalize, self.records, &|buffer| match buffer {
            Buffer::NormParams => builder.whole(norm_params),
            Buffer::Segments => builder.whole(segments),
            Buffer::Records => builder.whole(records),
            buffer => self.buffers.get(builder, buffer),
        }));
        self.per_record(builder, Kernel::Agc, (Buffer::ParameterRecords, records));
    }

    /// Z-clip: replaces the limits by those that follow past norms. Returns the buffer of the histories.
    fn z_clip(&mut self, builder: &mut Builder) -> Option<usize> {
        self.norm.z_clip?;
        let histories = builder.results("gradclip.histories", STATE, NormHistory::default(), self.records);
        self.per_record(builder, Kernel::ZClip, (Buffer::Histories, histories));
        Some(histories)
    }

    /// Auto-clip: replaces the limits by percentiles of the last norms. Returns the buffer of those norms.
    fn auto_clip(&mut self, builder: &mut Builder) -> Option<(AutoClip, usize)> {
        let auto_clip = self.norm.auto_clip?;
        let words = auto_clip.device_words(&[NormWindow::default()]).repeat(self.records);
        let windows = builder.state("gradclip.norm_windows", STATE, &words);
        self.steps.push(builder.per_workgroup(Kernel::AutoClip, self.records, &|buffer| {
            self.with_own(builder, (Buffer::NormWindows, windows), buffer)
        }));
        Some((auto_clip, windows))
    }

    /// Applies the rules that keep state, unless the records have done so.
    fn conclude(&mut self, builder: &Builder) {
        if self.concluded || self.buffers.step_counts.is_none() {
            return;
        }
        // A single workgroup knows when all records are concluded, to update the loss scale.
        let invocations = if self.norm.dynamic_loss_scale.is_some() { 1 } else { self.records };
        let range = |buffer| self.buffers.get(builder, buffer);
        self.steps.push(builder.per_invocation(Kernel::Conclude, invocations, &range));
    }

    /// Adds a dispatch of one invocation for each record. `own` is the buffer that only this stage binds.
    fn per_record(&mut self, builder: &Builder, kernel: Kernel, own: (Buffer, usize)) {
        let range = |buffer| self.with_own(builder, own, buffer);
        self.steps.push(builder.per_invocation(kernel, self.records, &range));
    }

    /// Returns the range to bind for a buffer in a stage with a buffer of its own.
    fn with_own(&self, builder: &Builder, own: (Buffer, usize), buffer: Buffer) -> BoundRange {
        if buffer == own.0 { builder.whole(own.1) } else { self.buffers.get(builder, buffer) }
    }

    /// Computes the statistics of each gradient. Returns their buffer.
    fn tensor_stats(&mut self, builder: &mut Builder, gradients: usize) -> Option<usize> {
        if !self.norm.tensor_stats {
            return None;
        }
        let mut table = vec![Segment::EMPTY; gradients.max(1)];
        // The partials of a gradient are consecutive. Those of the parameters come after all of them.
        let gradient_segments = &self.layout.segments[..self.records];
        let end = gradient_segments.iter().map(|partials| partials.end).max().unwrap_or(0);
        for (partial, &gradient) in (0..).zip(&self.layout.gradient_of_partial[..end]) {
            let segment = &mut table[gradient as usize];
            segment.first = if segment.count == 0 { partial } else { segment.first };
            segment.count += 1;
        }
        let usage = STORAGE | COPY_SRC;
        let stats = builder.results("gradclip.tensor_stats", usage, TensorStats::UNMEASURED, gradients);
        let segments = builder.buffer("gradclip.tensor_segments", STORAGE, &table);
        let finalize = self.finalize(Output::TensorStats);
        self.steps.push(builder.per_workgroup(finalize, gradients, &|buffer| match buffer {
            Buffer::Segments => builder.whole(segments),
            Buffer::TensorStats => builder.whole(stats),
            buffer => self.buffers.get(builder, buffer),
        }));
        Some(stats)
    }
}
