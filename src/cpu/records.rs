//! Measures gradients, and computes the norm and the limit of each record.

use super::columns;
use super::elements::Elements;
use super::gradient::Gradient;
use super::kernels::ElementCounts;
use super::norm_sums::NormSums;
use super::parallel::{self, Reduction as _};
use super::reductions::{NormReduction, StatsReduction};
use super::tensor_stats;
use crate::extended;
use crate::float_modes::in_default_modes;
use crate::operation::{ByNorm, Scope, agc_limit};
use crate::{ClipRecord, NormHistory, NormWindow, TensorStats, record};

/// The input of a record: a measurement and its limit.
#[derive(Clone, Copy)]
pub(super) struct RecordInput {
    pub(super) measured: record::NormMeasurement,
    /// A limit relative to the norm of a parameter may exceed f32.
    pub(super) limit: f64,
}

impl RecordInput {
    /// Computes the record. With z-clip or auto-clip, the smaller limit applies, and the norm is added to `history` or
    /// `window`.
    pub(super) fn record(
        &self,
        norm: &ByNorm,
        history: &mut NormHistory,
        window: &mut NormWindow,
    ) -> ClipRecord {
        let record = ClipRecord::new(self.measured, norm, self.limit);
        if record.non_finite() {
            return record;
        }
        let z_limit = norm.z_clip.and_then(|z_clip| z_clip.limit_of(history, record.norm()));
        let auto_limit = norm.auto_clip.and_then(|auto_clip| auto_clip.limit_of(window, record.norm()));
        match z_limit.or(auto_limit) {
            Some(limit) => ClipRecord::new(self.measured, norm, self.limit.min(limit.into())),
            None => record,
        }
    }
}

/// A gradient, or one of its rows or columns. All elements belong to one record.
#[derive(Clone, Copy)]
struct Segment<'a> {
    /// The index of the gradient.
    gradient: usize,
    group: usize,
    /// The index of the record.
    record: usize,
    measured: bool,
    /// With columns, those of the whole gradient.
    elements: Elements<'a>,
    /// With columns, that of the whole gradient.
    parameter: Option<Elements<'a>>,
    /// The number of columns of the gradient. If it is not 1, the segment is one of them.
    columns: usize,
    /// Whether the segment is the first of its gradient.
    is_first: bool,
}

impl Segment<'_> {
    /// Returns the number of elements.
    const fn len(&self) -> usize {
        self.elements.len() / self.columns
    }
}

/// Returns the number of records.
pub(super) fn record_count(gradients: &[Gradient<'_>], scope: Scope, groups: usize) -> usize {
    if scope.is_together() { groups } else { gradients.iter().map(Gradient::units).sum() }
}

/// Splits gradients into the segments of their records.
fn segments<'a>(gradients: &'a [Gradient<'_>], scope: Scope) -> Vec<Segment<'a>> {
    let mut segments = Vec::with_capacity(gradients.len());
    for (index, gradient) in gradients.iter().enumerate() {
        let Gradient { group, measured, parameter, .. } = *gradient;
        let elements = gradient.elements();
        let segment = Segment {
            gradient: index,
            group,
            record: group,
            measured,
            elements,
            parameter,
            columns: 1,
            is_first: true,
        };
        if scope.is_together() {
            segments.push(Segment { parameter: None, ..segment });
            continue;
        }
        let rows = gradient.rows;
        let needs_parameter = matches!(scope, Scope::Parameter { .. }) && measured;
        let first = segments.len();
        if gradient.columns != 1 {
            segments.extend((0..gradient.columns).map(|column| Segment {
                record: first + column,
                parameter: parameter.filter(|_| needs_parameter),
                columns: gradient.columns,
                is_first: column == 0,
                ..segment
            }));
            continue;
        }
        segments.extend((0..rows).map(|row| Segment {
            record: first + row,
            elements: elements.row(row, rows),
            parameter: parameter.filter(|_| needs_parameter).map(|parameter| parameter.row(row, rows)),
            ..segment
        }));
    }
    segments
}

/// Measures gradients. Returns the input of each record, and the statistics of each gradient if the clip enables them.
/// `max_norms` holds one limit per group.
pub(super) fn measure(
    gradients: &[Gradient<'_>],
    norm: &ByNorm,
    max_norms: &[f32],
) -> (Vec<RecordInput>, Vec<TensorStats>) {
    let mut segments = segments(gradients, norm.scope);
    let limits = if norm.scope.is_together() {
        max_norms.to_vec()
    } else {
        let limit = |segment: &Segment<'_>| {
            norm.scope.limit(segment.group, segment.len() as u64, segment.measured).among(max_norms)
        };
        in_default_modes(|| segments.iter().map(limit).collect())
    };
    segments.retain(|segment| segment.measured);
    // Makes the segments of each record adjacent. The sort is stable, so it keeps the order of the gradients.
    segments.sort_by_key(|segment| segment.record);

    let (sums, counts) = if norm.tensor_stats {
        reduce(&segments, &StatsReduction(norm.norm_type)).into_iter().unzip()
    } else {
        (reduce(&segments, &NormReduction(norm.norm_type)), Vec::new())
    };
    in_default_modes(|| {
        let (sums, parameter_sums) = sums.split_at(segments.len());
        let inputs = record_inputs(norm, max_norms, limits, &segments, sums, parameter_sums);
        let stats = norm.tensor_stats.then(|| stats(gradients.len(), &segments, sums, &counts, norm));
        (inputs, stats.unwrap_or_default())
    })
}

/// Reduces all segments, and then all parameters.
fn reduce<R: parallel::Reduction>(segments: &[Segment<'_>], reduction: &R) -> Vec<R::Output> {
    let elements = segments.iter().map(|segment| (segment, segment.elements));
    let parameters = segments.iter().filter_map(|segment| Some((segment, segment.parameter?)));
    let all: Vec<_> = elements.chain(parameters).collect();
    // One parallel pass reads all of those that are consecutive.
    let consecutive = all.iter().filter(|(segment, _)| segment.columns == 1);
    let consecutive: Vec<Elements<'_>> = consecutive.map(|(_, elements)| *elements).collect();
    let mut values = parallel::reduce(&consecutive, reduction).into_iter();
    let mut outputs = Vec::with_capacity(all.len());
    for (segment, elements) in all {
        if segment.columns == 1 {
            outputs.extend(values.next());
        } else if segment.is_first {
            outputs.extend(columns::reduce(elements, segment.columns, reduction));
        }
    }
    outputs
}

/// Combines the sums of the segments of each record. `limits` holds one limit per record.
fn record_inputs(
    norm: &ByNorm,
    max_norms: &[f32],
    limits: Vec<f32>,
    segments: &[Segment<'_>],
    sums: &[NormSums],
    parameter_sums: &[NormSums],
) -> Vec<RecordInput> {
    let parts: Vec<_> = segments.iter().map(Segment::len).zip(sums.iter().copied()).collect();
    let empty = combine(&[], norm, |_| 0);
    let mut inputs: Vec<_> =
        limits.into_iter().map(|limit| RecordInput { measured: empty, limit: limit.into() }).collect();
    let mut rest = &parts[..];
    for segments in segments.chunk_by(|one, next| one.record == next.record) {
        let (parts, after) = rest.split_at(segments.len());
        inputs[segments[0].record].measured = combine(parts, norm, |index| segments[index].gradient);
        rest = after;
    }
    if let Scope::Parameter { floor } = norm.scope {
        for (segment, sums) in segments.iter().zip(parameter_sums) {
            let parameter_norm = extended::in_f32_precision(sums.norm(norm.norm_type));
            inputs[segment.record].limit = agc_limit(max_norms[segment.group], parameter_norm, floor);
        }
    }
    inputs
}

/// Computes the statistics of each gradient from those of its segments. Unmeasured gradients keep the default.
fn stats(
    gradients: usize,
    segments: &[Segment<'_>],
    sums: &[NormSums],
    counts: &[ElementCounts],
    norm: &ByNorm,
) -> Vec<TensorStats> {
    let mut stats = vec![TensorStats::default(); gradients];
    let values = sums.iter().copied().zip(counts.iter().copied());
    let values: Vec<_> = segments.iter().zip(values).collect();
    for rows in values.chunk_by(|(one, _), (next, _)| one.gradient == next.gradient) {
        let parts: Vec<_> = rows.iter().map(|(segment, value)| (segment.len(), *value)).collect();
        let reduction = StatsReduction(norm.norm_type);
        // The 0-norm counts a gradient once, regardless of its number of rows.
        let value = parallel::combine_gradients(&parts, &reduction);
        let (sums, counts) = reduction.finish_gradient(value);
        stats[rows[0].0.gradient] = tensor_stats::from_sums(sums, counts, norm);
    }
    stats
}

/// Combines the parts of one record. Each part is a length and its sums; `gradient` maps the index of a part to the
/// index of its gradient.
pub(super) fn combine(
    parts: &[(usize, NormSums)],
    norm: &ByNorm,
    gradient: impl Fn(usize) -> usize,
) -> record::NormMeasurement {
    let sums = parallel::combine_gradients(parts, &NormReduction(norm.norm_type));
    let first_non_finite = parts.iter().position(|(_, sums)| sums.non_finite());
    #[expect(clippy::cast_possible_truncation, reason = "no memory holds a list of 2³² gradients")]
    let gradient = |index| gradient(index) as u32;
    record::NormMeasurement {
        norm: sums.norm(norm.norm_type),
        max_magnitude: sums.max_magnitude(),
        first_non_finite: first_non_finite.map(gradient),
        empty: parts.iter().all(|(len, _)| *len == 0),
    }
}

/// Computes the record of a clip of f32 slices by their global L2 norm. `max_norm` must be valid.
pub(super) fn from_slices(gradients: &[impl AsRef<[f32]>], max_norm: f32) -> ClipRecord {
    let norm = ByNorm::l2(max_norm);
    let elements: Vec<_> = gradients.iter().map(|gradient| Elements::F32(gradient.as_ref())).collect();
    let lens = elements.iter().map(Elements::len);
    let parts: Vec<_> = lens.zip(parallel::reduce(&elements, &NormReduction(norm.norm_type))).collect();
    in_default_modes(|| ClipRecord::new(combine(&parts, &norm, |index| index), &norm, max_norm.into()))
}
