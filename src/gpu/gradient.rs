//! What to clip: gradients and their parameters, and the checks that nothing is clipped which should not be.

use std::collections::HashMap;
use std::ops::Range;

use super::labels::Labels;
use super::region::{Extent, Region};
use crate::rows::RowLimit;
use crate::{DType, Error, GradientId};

/// One gradient: a whole buffer, or a range of one that holds other things too.
///
/// Its shape does not matter, as long as its elements lie side by side. The buffer needs the usage
/// [`STORAGE`](wgpu::BufferUsages::STORAGE); nothing outside the range is taken into the result, or written.
#[derive(Clone, Debug)]
pub struct Gradient<'a> {
    region: Region<'a>,
    group: usize,
    measured: bool,
    scaled: bool,
    rows: u64,
    parameter: Option<Parameter<'a>>,
    label: Option<&'a str>,
}

/// The parameter that a gradient is of: a whole buffer, or a range of one. It is only read, and only by a
/// [`Clip::by_parameter_norm`](crate::Clip::by_parameter_norm).
#[derive(Clone, Debug)]
pub struct Parameter<'a> {
    region: Region<'a>,
}

impl<'a> Gradient<'a> {
    /// All of a buffer.
    #[must_use]
    pub const fn new(buffer: &'a wgpu::Buffer, dtype: DType) -> Self {
        let region = Region::new(buffer, dtype);
        Self { region, group: 0, measured: true, scaled: true, rows: 1, parameter: None, label: None }
    }

    /// Sets a label, such as the name of the parameter, which errors show beside the index. The plan keeps it:
    /// [`ClipPlan::label`](crate::ClipPlan::label).
    #[must_use]
    pub const fn label(self, label: &'a str) -> Self {
        Self { label: Some(label), ..self }
    }

    /// Only these elements, counted from the start of the buffer. The range may begin at any element and may be empty.
    #[must_use]
    pub const fn elements(self, range: Range<u64>) -> Self {
        Self { region: self.region.with(Extent::Elements(range)), ..self }
    }

    /// Only these bytes of the buffer: for pools that hand out byte offsets. Both ends must be multiples of the
    /// element's size.
    #[must_use]
    pub const fn bytes(self, range: Range<u64>) -> Self {
        Self { region: self.region.with(Extent::Bytes(range)), ..self }
    }

    /// Sets the group: the index of the gradient's clip in [`Clipper::prepare_groups`](crate::Clipper::prepare_groups). The default
    /// is 0.
    #[must_use]
    pub const fn group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Leaves the gradient out of the norm, but scales it with the others.
    #[must_use]
    pub const fn unmeasured(self) -> Self {
        Self { measured: false, ..self }
    }

    /// Counts the gradient in the norm, but never writes it.
    #[must_use]
    pub const fn unscaled(self) -> Self {
        Self { scaled: false, ..self }
    }

    /// Splits the gradient into `rows` consecutive rows of equal length; the number is the first of its shape. A clip of each
    /// gradient on its own then clips each row on its own, and leaves a record for each. Other clips ignore it. A weight of
    /// the shape `[out, in]` has `out` rows. Empty gradients may have rows too, at most 2²⁰ together.
    #[must_use]
    pub const fn rows(self, rows: u64) -> Self {
        Self { rows, ..self }
    }

    /// The parameter that it is the gradient of, of the same shape; its type may differ. Several gradients may have the same.
    #[must_use]
    pub const fn parameter(self, parameter: Parameter<'a>) -> Self {
        Self { parameter: Some(parameter), ..self }
    }
}

impl<'a> Parameter<'a> {
    /// All of a buffer.
    #[must_use]
    pub const fn new(buffer: &'a wgpu::Buffer, dtype: DType) -> Self {
        Self { region: Region::new(buffer, dtype) }
    }

    /// Only these elements; see [`Gradient::elements`].
    #[must_use]
    pub const fn elements(self, range: Range<u64>) -> Self {
        Self { region: self.region.with(Extent::Elements(range)) }
    }

    /// Only these bytes; see [`Gradient::bytes`].
    #[must_use]
    pub const fn bytes(self, range: Range<u64>) -> Self {
        Self { region: self.region.with(Extent::Bytes(range)) }
    }
}

/// What has a norm by itself or shares one: a gradient, a row of one, or the same of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Index into the list of distinct buffers.
    pub(super) buffer: usize,
    pub(super) dtype: DType,
    /// In elements from the start of the buffer.
    pub(super) start: u64,
    /// In elements.
    pub(super) len: u64,
    /// The gradient that it is, or is of.
    pub(super) gradient: usize,
    pub(super) group: usize,
    pub(super) measured: bool,
    pub(super) scaled: bool,
}

impl Span {
    fn bytes(&self) -> Range<u64> {
        self.start * self.dtype.size()..(self.start + self.len) * self.dtype.size()
    }

    /// Its rows, of which there are so many.
    pub(super) fn rows(self, rows: u64) -> impl Iterator<Item = Self> {
        let len = self.len / rows.max(1);
        (0..rows).map(move |row| Self { start: self.start + row * len, len, ..self })
    }
}

/// Gradients that have been checked.
#[derive(Debug)]
pub(super) struct Set<'a> {
    pub(super) labels: Labels,
    /// The distinct buffers, in order of their first appearance.
    pub(super) buffers: Vec<&'a wgpu::Buffer>,
    /// The gradients.
    pub(super) spans: Vec<Span>,
    /// The rows of each.
    pub(super) rows: Vec<u64>,
    /// The parameter of each, if it is needed.
    pub(super) parameters: Vec<Option<Span>>,
}

impl<'a> Set<'a> {
    /// Where gradients lie, each of which belongs to one of so many groups. No two may overlap.
    pub(super) fn resolve(
        gradients: &[Gradient<'a>],
        groups: usize,
        with_parameters: bool,
    ) -> Result<Self, Error> {
        #[expect(clippy::mutable_key_type, reason = "a buffer is hashed and compared by its identity")]
        let mut index_of = HashMap::new();
        let mut buffers = Vec::new();
        let mut index_of = |buffer| {
            *index_of.entry(buffer).or_insert_with(|| {
                buffers.push(buffer);
                buffers.len() - 1
            })
        };
        let labels = Labels::new(gradients.iter().map(|gradient| gradient.label));
        let (mut spans, mut rows_of) = (Vec::with_capacity(gradients.len()), Vec::new());
        let mut parameters = Vec::new();
        let mut row_limit = RowLimit::default();
        for (index, gradient) in gradients.iter().enumerate() {
            let &Gradient { ref region, group, measured, scaled, rows, ref parameter, label } = gradient;
            let id = || GradientId::new(index, label);
            if group >= groups {
                return Err(Error::Group { gradient: id(), given: group, groups });
            }
            let elements = region.elements(&id)?;
            let len = elements.end - elements.start;
            let buffer = index_of(region.buffer);
            let dtype = region.dtype;
            let span =
                Span { buffer, dtype, start: elements.start, len, gradient: index, group, measured, scaled };
            row_limit.check(&id, rows, len)?;
            spans.push(span);
            rows_of.push(rows);
            if with_parameters {
                parameters.push(match parameter {
                    Some(parameter) => Some(parameter.of(&span, &id, &mut index_of)?),
                    None if measured => return Err(Error::NoParameter { gradient: id() }),
                    None => None,
                });
            }
        }
        check_overlaps(&spans, &labels)?;
        Ok(Self { labels, buffers, spans, rows: rows_of, parameters })
    }
}

impl<'a> Parameter<'a> {
    /// Where the parameter of a gradient lies.
    fn of(
        &self,
        gradient: &Span,
        id: &dyn Fn() -> GradientId,
        index_of: &mut impl FnMut(&'a wgpu::Buffer) -> usize,
    ) -> Result<Span, Error> {
        let elements =
            self.region.elements(id).map_err(|error| Error::Parameter { error: Box::new(error) })?;
        let len = elements.end - elements.start;
        if len != gradient.len {
            return Err(Error::ParameterLength { gradient: id(), given: len, needed: gradient.len });
        }
        let (buffer, dtype) = (index_of(self.region.buffer), self.region.dtype);
        Ok(Span { buffer, dtype, start: elements.start, scaled: false, ..*gradient })
    }
}

/// The indices of the spans that are not empty, in the order in which they lie in the buffers.
pub(super) fn in_address_order(spans: &[Span]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..spans.len()).filter(|&index| spans[index].len > 0).collect();
    order.sort_unstable_by_key(|&index| (spans[index].buffer, spans[index].bytes().start, index));
    order
}

fn check_overlaps(spans: &[Span], labels: &Labels) -> Result<(), Error> {
    for pair in in_address_order(spans).windows(2) {
        let (first, second) = (&spans[pair[0]], &spans[pair[1]]);
        let (one, other) = (first.bytes(), second.bytes());
        if first.buffer == second.buffer && other.start < one.end {
            let (start, end) = (other.start, one.end.min(other.end));
            let [first, second] = [pair[0], pair[1]].map(|index| GradientId::new(index, labels.get(index)));
            return Err(Error::Overlap { first, second, start, end });
        }
    }
    Ok(())
}
