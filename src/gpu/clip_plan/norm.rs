//! The construction of a plan for a clip by norm: its buffers and its stages.

use wgpu::BufferUsages;

use super::builder::{Builder, or_one};
use super::segment_map::SegmentMap;
use super::{ClipPlan, Outcome, Step, TilePartials};
use crate::gpu::device_context::DeviceContext;
use crate::gpu::gradient::Set;
use crate::gpu::layout::{Bank, Batch, Layout, Limits};
use crate::gpu::read_back::Results;
use crate::kernels::tables::{NormParams, Segment, block_rows};
use crate::kernels::{Buffer, Kernel, Output, Reduction};
use crate::operation::{ByNorm, Scope};
use crate::{AutoClip, ClipRecord, Error, NonFinite, NormHistory, NormWindow, StepCounts, TensorStats};

const STORAGE: BufferUsages = BufferUsages::STORAGE;
const UNIFORM: BufferUsages = BufferUsages::UNIFORM;
const COPY_SRC: BufferUsages = BufferUsages::COPY_SRC;
const COPY_DST: BufferUsages = BufferUsages::COPY_DST;

/// The usage of state that lasts from step to step and can be saved and restored.
const STATE: BufferUsages = STORAGE.union(COPY_SRC).union(COPY_DST);

/// Builds a plan with one group for each limit. `kept` is the state of a plan of the same gradients before they moved.
pub(super) fn by_norm(
    context: &DeviceContext,
    norm: &ByNorm,
    max_norms: &[f32],
    set: &Set<'_>,
    kept: Option<&Outcome>,
) -> Result<ClipPlan, Error> {
    let record_bytes = size_of::<ClipRecord>() + norm.auto_clip.map_or(0, AutoClip::state_bytes);
    if !norm.scope.is_together() {
        // Checked before the host allocates the table of segments.
        // One of rows and columns is 1.
        let units = set.rows.iter().zip(&set.columns).map(|(&rows, &columns)| rows.max(columns));
        let records = units.fold(0_u64, u64::saturating_add);
        context.check_scratch(records.saturating_mul(record_bytes as u64))?;
        check_columns(context, set)?;
    }
    let reduction = norm.reduction();
    let map = SegmentMap::new(norm.scope, max_norms.len(), set);
    let layout = map.lay_out(context.limits(), norm.scope != Scope::Supplied, reduction)?;
    let scratch = size_of_val(&layout.tiles[..])
        + layout.gradient_of_partial.len() * reduction.partial_bytes()
        + size_of_val(&layout.partial_locations[..])
        + map.segments * record_bytes;
    context.guarded(scratch as u64, layout.largest_dispatch(), || {
        let mut builder = Builder::new(context, &set.buffers, &layout.tiles);
        let table = map.table(&layout.segments, max_norms);
        let records = table.len();
        // Without records there is still one segment, since a buffer must not be empty.
        let table = or_one(&table, &Segment { max_norm: max_norms[0], ..Segment::EMPTY }).to_vec();
        let buffers = Buffers::new(&mut builder, norm, reduction, &layout, (&table, records), kept);
        let wide = context.limits().wide && reduction.loads_vectors() && layout.wants_wide_workgroups();
        let resets = set.parts > 0 || set.spans.iter().any(|span| span.partials.is_some());
        let mut stages = Stages {
            norm,
            reduction,
            layout: &layout,
            buffers,
            wide,
            records,
            kept,
            resets,
            concluded: false,
            parts: (0..set.parts.max(1)).map(|_| Vec::new()).collect(),
            steps: Vec::new(),
        };

        let step_counts = norm.keeps_step_counts().then(|| {
            let kept = kept.and_then(|kept| kept.step_counts.as_ref());
            builder.kept_or(kept, |builder| {
                builder.results("gradclip.step_counts", STATE, StepCounts::default(), records)
            })
        });
        let (mut supplied, mut tensor_stats) = (None, None);
        if norm.scope == Scope::Supplied {
            supplied = Some(stages.supplied_norm(&mut builder)?);
        } else {
            stages.partials(&mut builder)?;
            // Before the records, which may update the loss scale.
            tensor_stats = stages.tensor_stats(&mut builder, set.spans.len())?;
            stages.records(&mut builder, step_counts.as_ref())?;
        }
        stages.agc(&mut builder)?;
        let histories = stages.z_clip(&mut builder)?;
        let norm_windows = stages.auto_clip(&mut builder)?;
        stages.conclude(&mut builder, step_counts.as_ref())?;
        let small = stages.small(&builder, step_counts.as_ref())?;

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
        let apply = builder.batches(&layout.apply, |_, _| &buffers.records.buffer, scale)?;
        let outcome = Outcome {
            checked_device: context.checked_device().clone(),
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
            step_counts,
            tensor_stats,
            tile_partials,
        };
        Ok(ClipPlan {
            parts,
            in_parts: set.parts > 0,
            resets,
            record: steps,
            apply,
            small,
            coefficient_only: norm.coefficient_only,
            outcome: Some(outcome),
            loss_scale: None,
            scratch_bytes: builder.bytes,
            labels: set.labels.clone(),
            origin: None,
        })
    })
}

/// Checks that the blocks of gradients with columns fit into a binding.
fn check_columns(context: &DeviceContext, set: &Set<'_>) -> Result<(), Error> {
    let Limits { binding_bytes, alignment, .. } = context.limits();
    let spans = set.spans.iter().zip(&set.columns);
    let parameters = set.parameters.iter().flatten();
    let parameters = parameters.map(|parameter| (parameter, &set.columns[parameter.gradient]));
    for (span, &columns) in spans.chain(parameters).filter(|(_, columns)| **columns > 1) {
        let needed = span.len.min(block_rows(columns) * columns) * span.dtype.size() + alignment;
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
enum Partials<'a> {
    Own(wgpu::Buffer),
    /// Those that another kernel leaves.
    Given(wgpu::BufferBinding<'a>),
}

/// The buffers that several stages share.
struct Buffers<'a> {
    /// The partials, by bank.
    banks: Vec<Partials<'a>>,
    /// Only with several banks.
    partial_locations: Option<wgpu::Buffer>,
    gradient_of_partial: wgpu::Buffer,
    norm_params: Results,
    segments: wgpu::Buffer,
    records: Results,
}

impl<'a> Buffers<'a> {
    fn new(
        builder: &mut Builder<'a>,
        norm: &ByNorm,
        reduction: Reduction,
        layout: &Layout,
        (table, records): (&[Segment], usize),
        kept: Option<&Outcome>,
    ) -> Self {
        let gradients = or_one(&layout.gradient_of_partial, &0);
        // A sharded clip writes records.
        let record_usage = STORAGE.union(UNIFORM).union(COPY_SRC).union(COPY_DST);
        Self {
            banks: layout
                .banks
                .iter()
                .map(|bank| match bank {
                    Bank::Own(len) => {
                        let size = (*len).max(1) * reduction.partial_bytes();
                        Partials::Own(builder.zeroed("gradclip.partials", STORAGE.union(COPY_SRC), size))
                    }
                    Bank::Given(window) => Partials::Given(builder.window(window)),
                })
                .collect(),
            partial_locations: (layout.banks.len() > 1)
                .then(|| builder.buffer("gradclip.partial_locations", STORAGE, &layout.partial_locations)),
            gradient_of_partial: builder.buffer("gradclip.gradient_of_partial", STORAGE, gradients),
            norm_params: builder.kept_or(kept.map(|kept| &kept.norm_params), |builder| {
                builder.results("gradclip.norm_params", STATE.union(UNIFORM), NormParams::new(norm), 1)
            }),
            // The same gradients have the same partials, wherever they are: the table stays, with its limits.
            segments: builder.kept_or(kept.map(|kept| &kept.segments), |builder| {
                builder.buffer("gradclip.segments", STORAGE.union(COPY_DST), table)
            }),
            records: builder.kept_or(kept.map(|kept| &kept.records), |builder| {
                builder.results("gradclip.records", record_usage, ClipRecord::NOTHING_MEASURED, records)
            }),
        }
    }

    fn get(&self, buffer: Buffer) -> wgpu::BufferBinding<'_> {
        let buffer = match buffer {
            Buffer::Bank(bank) => match &self.banks[bank] {
                Partials::Own(buffer) => buffer,
                Partials::Given(range) => return range.clone(),
            },
            Buffer::PartialLocations => self.partial_locations.as_ref().expect("bound with several banks"),
            Buffer::GradientOfPartial => &self.gradient_of_partial,
            Buffer::NormParams => &self.norm_params.buffer,
            Buffer::Segments => &self.segments,
            Buffer::Records => &self.records.buffer,
            buffer => unreachable!("{buffer:?} belongs to a single stage"),
        };
        whole(buffer)
    }
}

impl TilePartials {
    fn new(builder: &mut Builder<'_>, banks: &[Partials<'_>], layout: &Layout, reduction: Reduction) -> Self {
        let own = banks.iter().filter_map(|bank| match bank {
            Partials::Own(buffer) => Some(buffer.clone()),
            Partials::Given(_) => None,
        });
        let banks: Vec<_> = own.collect();
        let bytes: u64 = banks.iter().map(wgpu::Buffer::size).sum();
        let words = vec![0; usize::try_from(bytes / 4).expect("the partials fit into memory")];
        let copy = builder.state("gradclip.tile_partials", COPY_SRC.union(COPY_DST), &words);
        let locations = layout.partial_locations.clone();
        Self { banks, locations, words: reduction.partial_bytes() / 4, copy }
    }
}

fn whole(buffer: &wgpu::Buffer) -> wgpu::BufferBinding<'_> {
    buffer.as_entire_buffer_binding()
}

/// The stages of a norm pass. Each method adds the dispatches of one, if the clip needs it.
struct Stages<'a> {
    norm: &'a ByNorm,
    reduction: Reduction,
    layout: &'a Layout,
    buffers: Buffers<'a>,
    /// Whether wide workgroups reduce the partials.
    wide: bool,
    /// The number of records; 0 if each gradient has its own record and there are no gradients.
    records: usize,
    /// The state to take over.
    kept: Option<&'a Outcome>,
    /// Whether partials are reset after they have been read.
    resets: bool,
    /// Whether a stage has concluded the step.
    concluded: bool,
    /// The dispatches that measure each part.
    parts: Vec<Vec<Step>>,
    /// Those that follow.
    steps: Vec<Step>,
}

impl Stages<'_> {
    /// Reduces gradients to partials.
    fn partials(&mut self, builder: &mut Builder<'_>) -> Result<(), Error> {
        let reduction = self.reduction;
        let partials = |&Batch { format, columns, .. }: &Batch, slots| {
            if columns {
                Kernel::PartialsColumns { reduction, dtype: format.dtype, slots }
            } else {
                Kernel::Partials { reduction, format, slots }
            }
        };
        let bank = |batch, _: &_| match &self.buffers.banks[self.layout.bank_of(batch)] {
            Partials::Own(buffer) => buffer,
            Partials::Given(_) => unreachable!("the first banks are those of the plan"),
        };
        let steps = builder.batches(&self.layout.norm, bank, partials)?;
        for (batch, step) in self.layout.norm.iter().zip(steps) {
            self.parts[batch.part].push(step);
        }
        Ok(())
    }

    /// Reduces partials to records. If there is one record, and its limit is final, the same dispatch concludes the step.
    fn records(&mut self, builder: &mut Builder<'_>, step_counts: Option<&Results>) -> Result<(), Error> {
        let is_final = self.has_final_limits();
        let concluding = self.finalize(Output::RecordAndState);
        self.concluded = step_counts.is_some() && self.records == 1 && is_final && builder.fits(concluding);
        let finalize = if self.concluded { concluding } else { self.finalize(Output::Record) };
        self.steps.push(builder.per_workgroup(finalize, self.records, |buffer| match buffer {
            Buffer::StepCounts => whole(&step_counts.expect("bound only if the step is concluded").buffer),
            buffer => self.buffers.get(buffer),
        })?);
        Ok(())
    }

    /// Whether no stage changes the limits of the records.
    fn has_final_limits(&self) -> bool {
        !matches!(self.norm.scope, Scope::Parameter { .. })
            && self.norm.z_clip.is_none()
            && self.norm.auto_clip.is_none()
    }

    /// Measures, concludes and scales in one dispatch, if the layout, the clip and the device allow that. The plan has the separate
    /// stages too, for the halves of a step.
    fn small(&self, builder: &Builder<'_>, step_counts: Option<&Results>) -> Result<Option<Step>, Error> {
        let Some(batch) = &self.layout.small else { return Ok(None) };
        let output = if step_counts.is_some() { Output::RecordAndState } else { Output::Record };
        let reduction = self.reduction;
        let kernel = |format, slots| Kernel::SmallClip { reduction, output, format, slots };
        // In parts, or with given partials, a missing part must not be measured here.
        if self.norm.coefficient_only || self.norm.tensor_stats || self.resets || !self.has_final_limits() {
            return Ok(None);
        }
        builder.single_workgroup(batch, kernel, |buffer| match buffer {
            Buffer::StepCounts => whole(&step_counts.expect("bound only to conclude a step").buffer),
            buffer => self.buffers.get(buffer),
        })
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
    fn supplied_norm(&mut self, builder: &mut Builder<'_>) -> Result<wgpu::Buffer, Error> {
        let supplied = builder.kept_or(self.kept.and_then(|kept| kept.supplied.as_ref()), |builder| {
            builder.buffer("gradclip.supplied_norm", STORAGE.union(COPY_DST), &[ClipRecord::NO_NORM])
        });
        self.steps.push(builder.per_invocation(Kernel::SuppliedNorm, self.records, |buffer| {
            if buffer == Buffer::SuppliedNorm { whole(&supplied) } else { self.buffers.get(buffer) }
        })?);
        Ok(supplied)
    }

    /// Adaptive gradient clipping: measures the parameters, then replaces the limits.
    fn agc(&mut self, builder: &mut Builder<'_>) -> Result<(), Error> {
        if !matches!(self.norm.scope, Scope::Parameter { .. }) {
            return Ok(());
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
        self.steps.push(builder.per_workgroup(finalize, self.records, |buffer| match buffer {
            Buffer::NormParams => whole(&norm_params),
            Buffer::Segments => whole(&segments),
            Buffer::Records => whole(&records),
            buffer => self.buffers.get(buffer),
        })?);
        self.steps.push(builder.per_invocation(Kernel::Agc, self.records, |buffer| {
            if buffer == Buffer::ParameterRecords { whole(&records) } else { self.buffers.get(buffer) }
        })?);
        Ok(())
    }

    /// Z-clip: replaces the limits by those that follow past norms. Returns the buffer of the histories.
    fn z_clip(&mut self, builder: &mut Builder<'_>) -> Result<Option<Results>, Error> {
        if self.norm.z_clip.is_none() {
            return Ok(None);
        }
        let histories = builder.kept_or(self.kept.and_then(|kept| kept.histories.as_ref()), |builder| {
            builder.results("gradclip.histories", STATE, NormHistory::default(), self.records)
        });
        self.steps.push(builder.per_invocation(Kernel::ZClip, self.records, |buffer| {
            if buffer == Buffer::Histories { whole(&histories.buffer) } else { self.buffers.get(buffer) }
        })?);
        Ok(Some(histories))
    }

    /// Auto-clip: replaces the limits by percentiles of the last norms. Returns the buffer of those norms.
    fn auto_clip(&mut self, builder: &mut Builder<'_>) -> Result<Option<(AutoClip, Results)>, Error> {
        let Some(auto_clip) = self.norm.auto_clip else { return Ok(None) };
        let kept = self.kept.and_then(|kept| kept.norm_windows.as_ref()).map(|(_, windows)| windows);
        let windows = builder.kept_or(kept, |builder| {
            let words = auto_clip.device_words(&vec![NormWindow::default(); self.records]);
            builder.state("gradclip.norm_windows", STATE, &words)
        });
        self.steps.push(builder.per_workgroup(Kernel::AutoClip, self.records, |buffer| {
            if buffer == Buffer::NormWindows { whole(&windows.buffer) } else { self.buffers.get(buffer) }
        })?);
        Ok(Some((auto_clip, windows)))
    }

    /// Applies the rules that keep state, unless the records have done so.
    fn conclude(&mut self, builder: &mut Builder<'_>, step_counts: Option<&Results>) -> Result<(), Error> {
        let Some(step_counts) = step_counts.filter(|_| !self.concluded) else { return Ok(()) };
        // A single workgroup knows when all records are concluded, to update the loss scale.
        let invocations = if self.norm.dynamic_loss_scale.is_some() { 1 } else { self.records };
        self.steps.push(builder.per_invocation(Kernel::Conclude, invocations, |buffer| {
            if buffer == Buffer::StepCounts { whole(&step_counts.buffer) } else { self.buffers.get(buffer) }
        })?);
        Ok(())
    }

    /// Computes the statistics of each gradient. Returns their buffer.
    fn tensor_stats(
        &mut self,
        builder: &mut Builder<'_>,
        gradients: usize,
    ) -> Result<Option<Results>, Error> {
        if !self.norm.tensor_stats {
            return Ok(None);
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
        let usage = STORAGE.union(COPY_SRC);
        let stats = builder.kept_or(self.kept.and_then(|kept| kept.tensor_stats.as_ref()), |builder| {
            builder.results("gradclip.tensor_stats", usage, TensorStats::UNMEASURED, gradients)
        });
        let segments = builder.buffer("gradclip.tensor_segments", STORAGE, &table);
        let finalize = self.finalize(Output::TensorStats);
        self.steps.push(builder.per_workgroup(finalize, gradients, |buffer| match buffer {
            Buffer::Segments => whole(&segments),
            Buffer::TensorStats => whole(&stats.buffer),
            buffer => self.buffers.get(buffer),
        })?);
        Ok(Some(stats))
    }
}
