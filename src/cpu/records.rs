//! From elements to what records are made of: what was measured, and its limit.

use super::gradient::{Elements, Gradient};
use super::kernels::Counts;
use super::measured::Measured;
use super::parallel::{self, Reduction as _};
use super::stats::Stats;
use crate::clip::{self, ByNorm, Scope};
use crate::float_state::in_default_modes;
use crate::{ClipRecord, NormHistory, TensorStats, record};

/// What a record is made of.
#[derive(Clone, Copy)]
pub(super) struct Basis {
    pub(super) measured: record::Measured,
    /// It may exceed f32, as a share of a parameter's norm.
    pub(super) limit: f64,
}

impl Basis {
    /// The record; where the limit follows past norms, with the smaller of the two, and with this norm in the history.
    pub(super) fn record(&self, norm: &ByNorm, history: &mut NormHistory) -> ClipRecord {
        let record = ClipRecord::new(self.measured, norm, self.limit);
        let z_clip = norm.z_clip.filter(|_| !record.non_finite());
        match z_clip.and_then(|z_clip| z_clip.limit_of(history, record.norm())) {
            Some(limit) => ClipRecord::new(self.measured, norm, self.limit.min(limit.into())),
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

/// How long members or gradients are, and what was found in each.
type Found = [(usize, Measured)];

/// Measures gradients, and says what follows for each record, and for each gradient if that was asked for. There is a limit
/// for each group.
pub(super) fn measure(
    gradients: &[Gradient<'_>],
    norm: &ByNorm,
    max_norms: &[f32],
) -> (Vec<Basis>, Vec<TensorStats>) {
    let mut members = members(gradients, norm.scope);
    let limits = if norm.scope.is_together() {
        max_norms.to_vec()
    } else {
        let limit = |member: &Member<'_>| {
            norm.scope.limit(member.group, member.elements.len() as u64, member.measured).among(max_norms)
        };
        in_default_modes(|| members.iter().map(limit).collect())
    };
    members.retain(|member| member.measured);
    // What shares a record side by side, in the order of the gradients.
    members.sort_by_key(|member| member.record);

    // All are read side by side, whatever they belong to, and the parameters too.
    let elements = members.iter().map(|member| member.elements);
    let parameters = members.iter().filter_map(|member| member.parameter);
    let all: Vec<Elements<'_>> = elements.chain(parameters).collect();
    let (measured, counts) = if norm.tensor_stats {
        parallel::reduce(&all, &Stats(norm.norm_type)).into_iter().unzip()
    } else {
        (parallel::reduce(&all, &norm.norm_type), Vec::new())
    };
    in_default_modes(|| conclude(gradients.len(), norm, max_norms, limits, &members, &measured, &counts))
}

/// What follows for each record, and each gradient, from what was measured of the members, and then of their parameters.
fn conclude(
    gradients: usize,
    norm: &ByNorm,
    max_norms: &[f32],
    limits: Vec<f32>,
    members: &[Member<'_>],
    measured: &[Measured],
    counts: &[Counts],
) -> (Vec<Basis>, Vec<TensorStats>) {
    let (own, of_parameters) = measured.split_at(members.len());
    let found: Vec<_> = members.iter().map(|member| member.elements.len()).zip(own.iter().copied()).collect();

    let nothing = together(&[], norm, |_| 0);
    let mut bases: Vec<_> =
        limits.into_iter().map(|limit| Basis { measured: nothing, limit: limit.into() }).collect();
    let mut rest = &found[..];
    for own in members.chunk_by(|one, next| one.record == next.record) {
        let (found, after) = rest.split_at(own.len());
        bases[own[0].record].measured = together(found, norm, |index| own[index].gradient);
        rest = after;
    }
    if let Scope::Parameter { floor } = norm.scope {
        for (member, parameter) in members.iter().zip(of_parameters) {
            let parameter_norm = record::in_f32_precision(parameter.norm(norm.norm_type));
            bases[member.record].limit = clip::agc_limit(max_norms[member.group], parameter_norm, floor);
        }
    }
    let stats = norm.tensor_stats.then(|| stats(gradients, members, own, counts, norm));
    (bases, stats.unwrap_or_default())
}

fn stats(
    gradients: usize,
    members: &[Member<'_>],
    measured: &[Measured],
    counts: &[Counts],
    norm: &ByNorm,
) -> Vec<TensorStats> {
    let mut stats = vec![TensorStats::default(); gradients];
    let found = measured.iter().copied().zip(counts.iter().copied());
    let found: Vec<_> = members.iter().zip(found).collect();
    for rows in found.chunk_by(|(one, _), (next, _)| one.gradient == next.gradient) {
        let parts: Vec<_> = rows.iter().map(|(member, found)| (member.elements.len(), *found)).collect();
        let reduction = Stats(norm.norm_type);
        // For p = 0 a gradient counts once, however many of its rows do.
        let whole = reduction.gradient(parallel::together(&parts, &reduction));
        stats[rows[0].0.gradient] = Stats::of(whole, norm);
    }
    stats
}

/// What was measured of all that shares a record. Of which gradient a part is, `gradient` knows.
pub(super) fn together(found: &Found, norm: &ByNorm, gradient: impl Fn(usize) -> usize) -> record::Measured {
    let measured = parallel::together(found, &norm.norm_type);
    let first_non_finite = found.iter().position(|(_, measured)| measured.non_finite());
    #[expect(clippy::cast_possible_truncation, reason = "no memory holds a list of 2³² gradients")]
    let gradient = |index| gradient(index) as u32;
    record::Measured {
        norm: measured.norm(norm.norm_type),
        max_magnitude: measured.max_magnitude(),
        first_non_finite: first_non_finite.map(gradient),
        empty: found.iter().all(|(len, _)| *len == 0),
    }
}

/// The record of a plain clip of slices in single precision to a valid limit.
pub(super) fn of_slices(gradients: &[&[f32]], max_norm: f32) -> ClipRecord {
    let norm = ByNorm::l2(max_norm);
    let elements: Vec<_> = gradients.iter().map(|elements| Elements::F32(elements)).collect();
    let lens = elements.iter().map(Elements::len);
    let found: Vec<_> = lens.zip(parallel::reduce(&elements, &norm.norm_type)).collect();
    in_default_modes(|| ClipRecord::new(together(&found, &norm, |index| index), &norm, max_norm.into()))
}
