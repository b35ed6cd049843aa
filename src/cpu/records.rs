//! From elements to what records are made of: what was measured, and its limit.

use super::gradient::{Elements, Gradient};
use super::kernels::Counts;
use super::measured::Measured;
use super::parallel::{self, Reduction as _};
use super::stats::Stats;
use crate::clip::{self, ByNorm, Scope};
use crate::{ClipRecord, NormHistory, TensorStats, record};

/// What a record is made of.
#[derive(Clone, Copy)]
pub(super) struct Basis {
    pub(super) measured: record::Measured,
    pub(super) limit: f32,
}

impl Basis {
    /// The record; where the limit follows past norms, with the smaller of the two, and with this norm in the history.
    pub(super) fn record(&self, norm: &ByNorm, history: &mut NormHistory) -> ClipRecord {
        let record = ClipRecord::new(self.measured, norm, self.limit);
        let z_clip = norm.z_clip.filter(|_| !record.non_finite());
        match z_clip.and_then(|z_clip| z_clip.limit(history, record.total_norm)) {
            Some(limit) => ClipRecord::new(self.measured, norm, limit.min(self.limit)),
            None => record,
        }
    }
}

/// What has a part in a norm, or a norm of its own: a gradient, or a row of one.
#[derive(Clone, Copy)]
struct Member<'a> {
    gradient: usize,
    group: usize,
    /// The record that it belongs to.
    record: usize,
    measured: bool,
    elements: Elements<'a>,
    parameter: Option<Elements<'a>>,
}

/// How many records there are of these gradients.
pub(super) fn count(gradients: &[Gradient<'_>], scope: Scope, groups: usize) -> usize {
    if scope.is_together() { groups } else { gradients.iter().map(|gradient| gradient.rows).sum() }
}

fn members<'a>(gradients: &'a [Gradient<'_>], scope: Scope) -> Vec<Member<'a>> {
    let mut members = Vec::with_capacity(gradients.len());
    for (index, gradient) in gradients.iter().enumerate() {
        let Gradient { group, measured, parameter, .. } = *gradient;
        let elements = gradient.elements();
        let member = Member { gradient: index, group, record: group, measured, elements, parameter };
        if scope.is_together() {
            members.push(Member { parameter: None, ..member });
            continue;
        }
        let rows = gradient.rows;
        let relative = matches!(scope, Scope::Parameter { .. }) && measured;
        let first = members.len();
        members.extend((0..rows).map(|row| Member {
            record: first + row,
            elements: elements.row(row, rows),
            parameter: parameter.filter(|_| relative).map(|parameter| parameter.row(row, rows)),
            ..member
        }));
    }
    members
}

/// What is found in each of some members.
type Found<'a> = [(Member<'a>, Measured)];

/// Measures gradients, and says what follows for each record, and for each gradient if that was asked for. There is a limit
/// for each group.
pub(super) fn measure(
    gradients: &[Gradient<'_>],
    norm: &ByNorm,
    max_norms: &[f32],
) -> (Vec<Basis>, Vec<TensorStats>) {
    let mut members = members(gradients, norm.scope);
    let records = count(gradients, norm.scope, max_norms.len());
    let limits = if norm.scope.is_together() {
        max_norms.to_vec()
    } else {
        let limit = |member: &Member<'_>| {
            norm.scope.limit(member.group, member.elements.len() as u64, member.measured).among(max_norms)
        };
        members.iter().map(limit).collect()
    };
    members.retain(|member| member.measured);

    // All are read side by side, whatever they belong to, and the parameters too.
    let elements = members.iter().map(|member| member.elements);
    let parameters = members.iter().filter_map(|member| member.parameter);
    let all: Vec<Elements<'_>> = elements.chain(parameters).collect();
    let (measured, counts): (Vec<_>, Vec<_>) = if norm.tensor_stats {
        parallel::reduce(&all, &Stats(norm.norm_type)).into_iter().unzip()
    } else {
        let nobody = |measured| (measured, Counts::default());
        parallel::reduce(&all, &norm.norm_type).into_iter().map(nobody).unzip()
    };
    let (own, of_parameters) = measured.split_at(members.len());
    let found: Vec<_> = members.iter().copied().zip(own.iter().copied()).collect();

    let mut bases: Vec<_> =
        limits.iter().map(|&limit| Basis { measured: together(&[], norm), limit }).collect();
    for (record, basis) in by_record(&found, records).into_iter().zip(&mut bases) {
        basis.measured = together(&record, norm);
    }
    if let Scope::Parameter { floor } = norm.scope {
        for (member, parameter) in members.iter().zip(of_parameters) {
            let limit = &mut bases[member.record].limit;
            *limit = clip::relative_limit(*limit, rounded(parameter.norm(norm.norm_type)), floor);
        }
    }
    let stats = norm.tensor_stats.then(|| stats(gradients.len(), &found, &counts, norm));
    (bases, stats.unwrap_or_default())
}

/// What was found, by the record that it belongs to.
fn by_record<'a>(found: &Found<'a>, records: usize) -> Vec<Vec<(Member<'a>, Measured)>> {
    let mut by_record = vec![Vec::new(); records];
    for found in found {
        by_record[found.0.record].push(*found);
    }
    by_record
}

fn stats(gradients: usize, found: &Found<'_>, counts: &[Counts], norm: &ByNorm) -> Vec<TensorStats> {
    let mut stats = vec![TensorStats::default(); gradients];
    let both: Vec<_> = found.iter().zip(counts).collect();
    for rows in both.chunk_by(|one, next| one.0.0.gradient == next.0.0.gradient) {
        let (member, _) = rows[0].0;
        let parts: Vec<_> = rows
            .iter()
            .map(|((member, measured), counts)| (member.elements.len(), (*measured, **counts)))
            .collect();
        let reduction = Stats(norm.norm_type);
        // For p = 0 a gradient counts once, however many of its rows do.
        let whole = reduction.gradient(parallel::together(&parts, &reduction));
        stats[member.gradient] = Stats::of(whole, norm);
    }
    stats
}

/// What was measured of all that shares a record.
fn together(found: &Found<'_>, norm: &ByNorm) -> record::Measured {
    let parts: Vec<(usize, Measured)> =
        found.iter().map(|(member, measured)| (member.elements.len(), *measured)).collect();
    let measured = parallel::together(&parts, &norm.norm_type);
    #[expect(clippy::cast_possible_truncation, reason = "no memory holds a list of 2³² gradients")]
    let index = |(member, _): &(Member<'_>, Measured)| member.gradient as u32;
    record::Measured {
        norm: measured.norm(norm.norm_type),
        max_magnitude: measured.max_magnitude(),
        first_non_finite: found.iter().find(|(_, measured)| measured.non_finite()).map(index),
        empty: parts.iter().all(|(len, _)| *len == 0),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the norm of f32 parameters is an f32; too large is infinite"
)]
fn rounded(norm: f64) -> f32 {
    norm as f32
}

/// The record of a plain clip of slices in single precision to a valid limit.
pub(super) fn of_slices(gradients: &[&[f32]], max_norm: f32) -> ClipRecord {
    let norm = ByNorm::l2(max_norm);
    let elements: Vec<_> = gradients.iter().map(|elements| Elements::F32(elements)).collect();
    let found = elements.iter().zip(parallel::reduce(&elements, &norm.norm_type)).enumerate();
    let member = |(gradient, (&elements, measured))| {
        let member = Member { gradient, group: 0, record: 0, measured: true, elements, parameter: None };
        (member, measured)
    };
    let measured = together(&found.map(member).collect::<Vec<_>>(), &norm);
    ClipRecord::new(measured, &norm, max_norm)
}
