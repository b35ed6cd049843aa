//! From what was measured to the records.

use super::gradient::{Elements, Gradient};
use super::measured::Measured;
use super::parallel;
use crate::clip::{Norm, Scope};
use crate::{ClipRecord, Error, NonFinite, record};

/// A gradient that has a part in a norm.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    /// Its index in the list.
    pub(super) gradient: usize,
    pub(super) group: usize,
    pub(super) elements: Elements<'a>,
}

type Found<'a> = (Member<'a>, Measured);

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
    norm: &Norm,
    limits: &[f32],
) -> Result<Vec<ClipRecord>, Error> {
    // All are read side by side, whatever group they belong to.
    let elements: Vec<Elements<'_>> = members.iter().map(|member| member.elements).collect();
    let measured = parallel::reduce(&elements, &norm.norm_type);
    let found: Vec<Found<'_>> = members.iter().copied().zip(measured).collect();
    let records = match norm.scope {
        Scope::Global => by_group(&found, norm, limits),
        Scope::Tensor | Scope::TensorRms => by_gradient(&found, gradients, norm, limits),
    };
    match records.iter().find(|record| norm.non_finite == NonFinite::Error && record.skip()) {
        Some(record) => {
            Err(Error::NonFinite { gradient: record.first_non_finite(), total_norm: record.total_norm })
        }
        None => Ok(records),
    }
}

fn by_group(found: &[Found<'_>], norm: &Norm, limits: &[f32]) -> Vec<ClipRecord> {
    let record = |(group, &limit)| {
        let members: Vec<Found<'_>> =
            found.iter().filter(|(member, _)| member.group == group).copied().collect();
        together(&members, norm, limit)
    };
    limits.iter().enumerate().map(record).collect()
}

fn by_gradient(found: &[Found<'_>], gradients: usize, norm: &Norm, limits: &[f32]) -> Vec<ClipRecord> {
    // What is not measured has no limit, either: only the loss scale is left of the clip.
    let mut records = vec![together(&[], norm, f32::INFINITY); gradients];
    for found in found {
        let (member, _) = found;
        let limit = limits[member.group];
        let rms = norm.scope == Scope::TensorRms;
        let limit = if rms { rms_limit(limit, member.elements.len()) } else { limit };
        records[member.gradient] = together(&[*found], norm, limit);
    }
    records
}

/// The limit of the L2 norm of so many elements, the root of the mean of whose squares has this limit.
#[expect(clippy::cast_possible_truncation, reason = "a limit is an f32; too large is infinite")]
fn rms_limit(threshold: f32, len: usize) -> f32 {
    // An empty gradient has no mean, and no limit times zero may become NaN.
    (f64::from(threshold) * (len.max(1) as f64).sqrt()) as f32
}

/// The record of gradients that share a norm.
fn together(found: &[Found<'_>], norm: &Norm, limit: f32) -> ClipRecord {
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
