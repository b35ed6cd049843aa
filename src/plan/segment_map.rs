//! `SegmentMap`: which gradients share a norm, and which limit each norm has.

use std::ops::Range;

use super::Limits;
use super::gradient::{Set, Span, in_address_order};
use super::layout::{self, Layout, Request, to_usize};
use crate::Error;
use crate::kernels::Reduction;
use crate::kernels::tables::{Segment, tile_elements};
use crate::operation::{Limit, Scope};

/// The segments of a plan. A segment is a group; or a gradient or a row that is clipped on its own; or its parameter.
pub(super) struct SegmentMap {
    /// The gradients or their rows, followed by their parameters or the rows of these.
    spans: Vec<Span>,
    /// The segment of each span. The segments of gradients come first; each has a record.
    segment_of: Vec<usize>,
    pub(super) segments: usize,
    /// For each record, how its limit follows from those of the groups.
    pub(super) limits: Vec<Limit>,
    /// The number of elements that decides the length of the tiles, if it is not that of the spans.
    total_elements: Option<u64>,
}

impl SegmentMap {
    /// Makes a segment of each group.
    pub(super) fn of_groups(groups: usize, set: &Set) -> Self {
        // Rows and columns have no norms of their own.
        let spans = set.spans.iter().map(|span| span.joined()).collect();
        let segment_of = set.spans.iter().map(|span| span.group).collect();
        let limits = (0..groups).map(|group| Limit::Of { group }).collect();
        Self { spans, segment_of, segments: groups, limits, total_elements: set.total_elements }
    }

    /// Makes the segments of a clip by norm.
    pub(super) fn new(scope: Scope, groups: usize, set: &Set) -> Self {
        if scope.is_together() {
            return Self::of_groups(groups, set);
        }
        let mut spans = Vec::with_capacity(set.spans.len());
        let mut limits = Vec::with_capacity(set.spans.len());
        for gradient in &set.spans {
            for row in 0..gradient.rows {
                let span = gradient.row(row);
                let limit = scope.limit(span.group, span.len / span.columns, span.measured);
                limits.resize(limits.len() + to_usize(span.columns), limit);
                spans.push(span);
            }
        }
        for (parameter, gradient) in set.parameters.iter().zip(&set.spans) {
            // A gradient that is not measured needs no parameter.
            let span = parameter.unwrap_or(Span { len: 0, ..*gradient });
            spans.extend((0..span.rows).map(|row| span.row(row)));
        }
        let mut segments = 0;
        let segment_of = spans
            .iter()
            .map(|span| {
                let first = segments;
                segments += to_usize(span.columns);
                first
            })
            .collect();
        Self { spans, segment_of, segments, limits, total_elements: set.total_elements }
    }

    /// Lays out the dispatches. `reduction` is that of the norm pass, if the plan has one.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLimit`] if other kernels leave partials in more or larger buffers than the device can bind.
    pub(super) fn lay_out(&self, limits: Limits, reduction: Option<Reduction>) -> Result<Layout, Error> {
        let order = in_address_order(&self.spans);
        let total = self.total_elements.unwrap_or_else(|| self.spans.iter().map(|span| span.len).sum());
        let request = Request {
            spans: &self.spans,
            order: &order,
            segment_of: &self.segment_of,
            segments: self.segments,
            measures: reduction.is_some(),
            norm_loads_vectors: reduction.is_some_and(Reduction::loads_vectors),
            partial_bytes: reduction.map_or(0, Reduction::partial_bytes) as u64,
            tile_elements: tile_elements(total),
        };
        layout::check_given(request, limits)?;
        Ok(layout::lay_out(request, limits))
    }

    /// The segments that have records, with limits that follow from those of the groups.
    pub(super) fn table(&self, partials: &[Range<usize>], max_norms: &[f32]) -> Vec<Segment> {
        let limits = self.limits.iter().map(|limit| limit.among(max_norms));
        partials.iter().zip(limits).map(|(partials, limit)| Segment::new(partials, limit)).collect()
    }
}
