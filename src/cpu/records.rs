//! From what was measured to the records.

use super::gradient::{Elements, Gradient};
use super::measured::Measured;
use super::parallel;
use crate::clip::{ByNorm, Scope};
use crate::{ClipRecord, Error, NonFinite, record};

/// A gradient that has a part in a norm.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    /// Its index in the list.
    pub(super) gradient: usize,
    pub(super) group: usize,
    pub(super) elements: Elements<'a>,
}

pub(super) type Found<'a> = (Member<'a>, Measured);

/// The gradients that are to be measured.
pub(super) fn members<'a>(gradients: &'a [Gradient<'_>]) -> Vec<Member<'a>> {
    let measured = gradients.iter().enumerate().filter(|(_, gradient)| gradient.measured);
    let member = |(index, gradient): (_, &'a Gradient<'_>)| Member {
        gradient: index,
        group: gradient.group,
        elements: gradient.elements(),
    };
    measured.map(member).collect()
}

/// The record of every group, or where each gradient has a norm of its own that of every one of so many gradients.
/// There is a limit for each group.
pub(super) fn records(
    members: &[Member<'_>],
    gradients: usize,
    norm: &ByNorm,
    limits: &[f32],
) -> Result<Vec<ClipRecord>, Error> {
    let found = found(members, norm);
    let records = match norm.scope {
        Scope::Global => by_group(&found, norm, limits),
        Scope::Tensor | Scope::TensorRms => by_gradient(&found, gradients, norm, limits),
        Scope::Supplied => return Err(Error::NormMissing),
    };
    match records.iter().find_map(|record| error_of(record, norm)) {
        Some(error) => Err(error),
        None => Ok(records),
    }
}

/// The record of gradients whose norm, without the loss scale, the caller knows.
pub(super) fn of_norm(total_norm: f32, norm: &ByNorm) -> Result<ClipRecord, Error> {
    // `ClipRecord::new` undoes the loss scale.
    let scaled = f64::from(total_norm) / f64::from(norm.inverse_scale);
    let measured = record::Measured { norm: scaled, max_magnitude: 0.0, first_non_finite: None };
    let record = ClipRecord::new(measured, norm, norm.max_norm);
    error_of(&record, norm).map_or(Ok(record), Err)
}

fn error_of(record: &ClipRecord, norm: &ByNorm) -> Option<Error> {
    let is_error = norm.non_finite == NonFinite::Error && record.skip();
    let gradient = record.first_non_finite();
    is_error.then_some(Error::NonFinite { gradient, total_norm: record.total_norm })
}

/// What is found in each of them.
pub(super) fn found<'a>(members: &[Member<'a>], norm: &ByNorm) -> Vec<Found<'a>> {
    // All are read side by side, whatever group they belong to.
    let elements: Vec<Elements<'_>> = members.iter().map(|member| member.elements).collect();
    let measured = parallel::reduce(&elements, &norm.norm_type);
    members.iter().copied().zip(measured).collect()
}

fn by_group(found: &[Found<'_>], norm: &ByNorm, limits: &[f32]) -> Vec<ClipRecord> {
    let record = |(group, &limit)| {
        let members: Vec<Found<'_>> =
            found.iter().filter(|(member, _)| member.group == group).copied().collect();
        together(&members, norm, limit)
    };
    limits.iter().enumerate().map(record).collect()
}

fn by_gradient(found: &[Found<'_>], gradients: usize, norm: &ByNorm, limits: &[f32]) -> Vec<ClipRecord> {
    // What is not measured has no limit, either: only the loss scale is left of the clip.
    let mut records = vec![together(&[], norm, f32::INFINITY); gradients];
    for found in found {
        let (member, _) = found;
        let limit = norm.scope.limit(member.group, member.elements.len() as u64, true);
        records[member.gradient] = together(&[*found], norm, limit.among(limits));
    }
    records
}

/// The record of gradients that share a norm.
pub(super) fn together(found: &[Found<'_>], norm: &ByNorm, limit: f32) -> ClipRecord {
    let parts: Vec<(usize, Measured)> =
        found.iter().map(|(member, measured)| (member.elements.len(), *measured)).collect();
    let measured = parallel::together(&parts, &norm.norm_type);
    #[expect(clippy::cast_possible_truncation, reason = "no memory holds a list of 2³² gradients")]
    let index = |(member, _): &Found<'_>| member.gradient as u32;
    let measured = record::Measured {
        norm: measured.norm(norm.norm_type),
        max_magnitude: measured.max_magnitude(),
        first_non_finite: found.iter().find(|(_, measured)| measured.non_finite()).map(index),
    };
    ClipRecord::new(measured, norm, limit)
}
