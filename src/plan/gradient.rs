//! Gradients and parameters in device buffers, and their input validation.

use std::ops::Range;

use super::buffer_range::{BufferRange, DeviceBuffer};
use super::labels::Labels;
use super::partials::{PartialRange, Partials};
use crate::kernels::Reduction;
use crate::operation::{ByNorm, Operation};
use crate::rows::RowLimit;
use crate::{DType, Error, GradientId};

/// A gradient in device memory: a whole buffer, or a range of one.
///
/// `B` is the type of a buffer. For wgpu, use the alias [`gradclip::Gradient`](crate::Gradient).
///
/// The elements must be contiguous; the shape does not matter. The buffer needs the usage `STORAGE`. Bytes outside the range are
/// neither used nor written.
///
/// [`rows`](Self::rows) and [`parameter`](Self::parameter) describe the tensor, whatever the clip. Clips that do not need them
/// do not read them, so that one list serves several clips.
///
/// ```
/// # let adapter = gradclip::adapters::enumerate().into_iter().next().expect("an adapter: scripts/test installs a software one");
/// # let (device, _) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
/// # let buffer = |size| device.create_buffer(&wgpu::BufferDescriptor {
/// #     label: None, size, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false,
/// # });
/// # let (weight, embedding, arena) = (buffer(64), buffer(64), buffer(1024));
/// use gradclip::Gradient;
///
/// let gradients = [
///     Gradient::f32(&weight).label("weight"),
///     Gradient::bf16(&embedding).group(1),
///     Gradient::f32(&arena).elements(64..128),
///     Gradient::from(arena.slice(..256)),
/// ];
/// # let _ = gradients;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gradient<'a, B> {
    range: BufferRange<'a, B>,
    group: usize,
    measured: bool,
    scaled: bool,
    rows: u64,
    columns: u64,
    parameter: Option<Parameter<'a, B>>,
    part: Option<usize>,
    partials: Option<Partials<'a, B>>,
    label: Option<&'a str>,
}

/// The parameter of a gradient: a whole buffer, or a range of one. Only
/// [`Clip::by_parameter_norm`](crate::Clip::by_parameter_norm) (AGC) reads it, and no clip writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter<'a, B> {
    range: BufferRange<'a, B>,
}

impl<'a, B> Gradient<'a, B> {
    /// Selects a whole buffer of f32 elements.
    #[must_use]
    pub const fn f32(buffer: &'a B) -> Self {
        Self::new(buffer, DType::F32)
    }

    /// Selects a whole buffer of f16 elements.
    #[must_use]
    pub const fn f16(buffer: &'a B) -> Self {
        Self::new(buffer, DType::F16)
    }

    /// Selects a whole buffer of bf16 elements.
    #[must_use]
    pub const fn bf16(buffer: &'a B) -> Self {
        Self::new(buffer, DType::BF16)
    }

    /// Selects a whole buffer of elements of type `dtype`.
    #[must_use]
    pub const fn new(buffer: &'a B, dtype: DType) -> Self {
        let range = BufferRange::whole(buffer, dtype);
        Self {
            range,
            group: 0,
            measured: true,
            scaled: true,
            rows: 1,
            columns: 1,
            parameter: None,
            part: None,
            partials: None,
            label: None,
        }
    }

    /// Sets a label, such as the name of the parameter, which errors show beside the index. The plan keeps it:
    /// [`ClipPlan::label`](crate::ClipPlan::label).
    #[must_use]
    pub const fn label(self, label: &'a str) -> Self {
        Self { label: Some(label), ..self }
    }

    /// Selects a range of elements, counted from the start of the buffer. It may begin at any element and may be empty. It replaces
    /// an earlier range.
    #[must_use]
    pub const fn elements(self, range: Range<u64>) -> Self {
        Self { range: self.range.with_elements(range), ..self }
    }

    /// Selects a range of bytes, for memory pools that return byte offsets. Both ends must be multiples of the element size.
    #[must_use]
    pub const fn bytes(self, range: Range<u64>) -> Self {
        Self { range: self.range.with_bytes(range), ..self }
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

    /// Splits the gradient into `rows` consecutive rows of equal length; `rows` is the first dimension of its shape. A weight of
    /// the shape `[out, in]` has `out` rows. A clip of each gradient on its own then clips each row on its own, with a record for
    /// each. Other clips ignore rows. Empty gradients may have rows too, at most 2²⁰ together.
    #[must_use]
    pub const fn rows(self, rows: u64) -> Self {
        Self { rows, ..self }
    }

    /// Splits the gradient, a matrix of `columns` columns whose rows are consecutive, into its columns: column j has the elements
    /// whose index is j modulo `columns`. A weight of the shape `[in, out]`, as in JAX, has `out` columns. A clip of each gradient on
    /// its own then clips each column on its own, with a record for each. Other clips ignore columns.
    ///
    /// Nothing is transposed, and no pass is added. A gradient has rows or columns, not both ([`Error::RowsAndColumns`]). The number
    /// of its elements must be a multiple of `columns` ([`Error::Columns`]). Empty columns count as empty rows do. Such a clip takes
    /// no [`partials`](Self::partials) of a gradient with columns ([`Error::PartialsAndColumns`]).
    #[must_use]
    pub const fn columns(self, columns: u64) -> Self {
        Self { columns, ..self }
    }

    /// Sets the parameter of the gradient. It has the same shape; its type may differ. Several gradients may share a parameter.
    #[must_use]
    pub const fn parameter(self, parameter: Parameter<'a, B>) -> Self {
        Self { parameter: Some(parameter), ..self }
    }

    /// Assigns the gradient to a part of the plan, counted from 0. [`ClipPlan::encode_part`](crate::ClipPlan::encode_part)
    /// measures each part separately, right after the kernels that produce it, while its gradients are still in the cache. A
    /// gradient without a part is in part 0. `part` must be less than the number of gradients. A clip that measures no norm
    /// ignores parts.
    #[must_use]
    pub const fn part(self, part: usize) -> Self {
        Self { part: Some(part), ..self }
    }

    /// Declares that the kernel that produces the gradient writes its [`Partials`]. The plan then does not read the gradient to
    /// measure it. A clip that measures no norm ignores them.
    #[must_use]
    pub const fn partials(self, partials: Partials<'a, B>) -> Self {
        Self { partials: Some(partials), ..self }
    }
}

impl<'a, B> Parameter<'a, B> {
    /// Selects a whole buffer of f32 elements.
    #[must_use]
    pub const fn f32(buffer: &'a B) -> Self {
        Self::new(buffer, DType::F32)
    }

    /// Selects a whole buffer of f16 elements.
    #[must_use]
    pub const fn f16(buffer: &'a B) -> Self {
        Self::new(buffer, DType::F16)
    }

    /// Selects a whole buffer of bf16 elements.
    #[must_use]
    pub const fn bf16(buffer: &'a B) -> Self {
        Self::new(buffer, DType::BF16)
    }

    /// Selects a whole buffer of elements of type `dtype`.
    #[must_use]
    pub const fn new(buffer: &'a B, dtype: DType) -> Self {
        Self { range: BufferRange::whole(buffer, dtype) }
    }

    /// Selects a range of elements; see [`Gradient::elements`].
    #[must_use]
    pub const fn elements(self, range: Range<u64>) -> Self {
        Self { range: self.range.with_elements(range) }
    }

    /// Selects a range of bytes; see [`Gradient::bytes`].
    #[must_use]
    pub const fn bytes(self, range: Range<u64>) -> Self {
        Self { range: self.range.with_bytes(range) }
    }
}

/// A range of elements with a norm of its own, or a part of a joint norm: a gradient, a parameter, or a row of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Index into the list of distinct buffers.
    pub(super) buffer: usize,
    pub(super) dtype: DType,
    /// The first element, counted from the start of the buffer.
    pub(super) start: u64,
    /// The number of elements.
    pub(super) len: u64,
    /// The index of the gradient, also for its parameter and its rows.
    pub(super) gradient: usize,
    pub(super) group: usize,
    pub(super) measured: bool,
    pub(super) scaled: bool,
    /// The number of rows; 1 if the span is a row.
    pub(super) rows: u64,
    /// The number of columns. In a layout, of those that have their own norms.
    pub(super) columns: u64,
    /// The part of the plan that measures it.
    pub(super) part: usize,
    /// The partials that another kernel writes.
    pub(super) partials: Option<PartialRange>,
}

impl Span {
    fn bytes(&self) -> Range<u64> {
        self.start * self.dtype.size()..(self.start + self.len) * self.dtype.size()
    }

    /// Returns the span without rows and columns: it has one norm.
    pub(super) const fn joined(self) -> Self {
        Self { rows: 1, columns: 1, ..self }
    }

    /// Returns a row. All rows have the same length.
    pub(super) fn row(&self, row: u64) -> Self {
        let len = self.len / self.rows.max(1);
        let partials = self
            .partials
            .map(|partials| PartialRange { first: partials.first + row * partials.count(len), ..partials });
        Self { start: self.start + row * len, len, rows: 1, partials, ..*self }
    }
}

/// Validated gradients.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) labels: Labels,
    /// The gradients.
    pub(super) spans: Vec<Span>,
    /// The parameter of each gradient; empty if the clip needs none.
    pub(super) parameters: Vec<Option<Span>>,
    /// The number of parts; 0 unless a gradient is in one.
    pub(super) parts: usize,
    /// For a shard whose partials are read back: the number of elements of all shards, which decides the length of the tiles.
    pub(super) total_elements: Option<u64>,
}

impl Set {
    /// Validates the gradients of the groups of a plan with these operations, and their parameters if the clip needs them. Returns
    /// them and their distinct buffers, in order of their first appearance.
    ///
    /// # Errors
    ///
    /// An error of phase "gradients and parameters" of [`Error`].
    pub(super) fn resolve<'a, B: DeviceBuffer>(
        gradients: &[Gradient<'a, B>],
        operations: &[Operation],
        total_elements: Option<u64>,
    ) -> Result<(Self, Vec<&'a B>), Error> {
        let groups = operations.len();
        let measured_norm = operations.first().and_then(Operation::measured_norm);
        let with_parameters = operations.first().is_some_and(Operation::needs_parameters);
        // Buffers are numbered in the order of their first use: a plan does not depend on where they are.
        let known = distinct(gradients);
        let mut indices = vec![None; known.len()];
        let mut buffers = Vec::new();
        let mut index_of = |buffer| {
            let place = known.binary_search(&buffer).expect("a buffer of the gradients");
            *indices[place].get_or_insert_with(|| {
                buffers.push(buffer);
                buffers.len() - 1
            })
        };
        let labels = Labels::new(gradients.iter().map(|gradient| gradient.label));
        let is_together = measured_norm.is_none_or(|norm| norm.scope.is_together());
        let mut spans = Vec::with_capacity(gradients.len());
        let mut parameters = Vec::new();
        let mut row_limit = RowLimit::default();
        let mut parts = 0;
        for (index, gradient) in gradients.iter().enumerate() {
            let &Gradient {
                ref range,
                group,
                measured,
                scaled,
                rows,
                columns,
                ref parameter,
                part,
                partials,
                label,
            } = gradient;
            let id = || GradientId::new(index, label);
            if group >= groups {
                return Err(Error::GroupWithoutClip { gradient: id(), given: group, groups });
            }
            let elements = range.elements(&id)?;
            let len = elements.end - elements.start;
            let buffer = index_of(range.buffer);
            let dtype = range.dtype;
            let mut span = Span {
                buffer,
                dtype,
                start: elements.start,
                len,
                gradient: index,
                group,
                measured,
                scaled,
                rows,
                columns,
                part: 0,
                partials: None,
            };
            row_limit.check(&id, rows, columns, len)?;
            if let Some(norm) = measured_norm {
                span.part = part.unwrap_or(0);
                if span.part >= gradients.len() {
                    return Err(Error::Part { gradient: id(), given: span.part, gradients: gradients.len() });
                }
                parts = parts.max(part.map_or(0, |part| part + 1));
                let own = if is_together { span.joined() } else { span };
                let resolve =
                    |partials: Partials<'a, B>| partials.resolve(&own, norm.reduction(), &id, &mut index_of);
                span.partials = partials.filter(|_| measured && len > 0).map(resolve).transpose()?;
            }
            spans.push(span);
            if with_parameters {
                parameters.push(match parameter {
                    Some(parameter) => Some(parameter.of(&span, &id, &mut index_of)?),
                    None if measured => return Err(Error::MissingParameter { gradient: id() }),
                    None => None,
                });
            }
        }
        check_overlaps(&spans, &labels)?;
        let reduction = measured_norm.map(ByNorm::reduction);
        check_partials(&spans, is_together, &parameters, reduction, &labels)?;
        Ok((Self { labels, spans, parameters, parts, total_elements }, buffers))
    }
}

impl<'a, B: DeviceBuffer> Parameter<'a, B> {
    /// Validates the parameter of a gradient.
    fn of(
        &self,
        gradient: &Span,
        id: &dyn Fn() -> GradientId,
        index_of: &mut impl FnMut(&'a B) -> usize,
    ) -> Result<Span, Error> {
        let elements =
            self.range.elements(id).map_err(|error| Error::InParameter { error: Box::new(error) })?;
        let len = elements.end - elements.start;
        if len != gradient.len {
            return Err(Error::ParameterLength { gradient: id(), given: len, needed: gradient.len });
        }
        let (buffer, dtype) = (index_of(self.range.buffer), self.range.dtype);
        Ok(Span { buffer, dtype, start: elements.start, scaled: false, partials: None, ..*gradient })
    }
}

/// Returns the distinct buffers of the gradients, of their parameters and of their partials, sorted.
fn distinct<'a, B: DeviceBuffer>(gradients: &[Gradient<'a, B>]) -> Vec<&'a B> {
    let mut buffers = Vec::with_capacity(gradients.len());
    for Gradient { range, parameter, partials, .. } in gradients {
        buffers.push(range.buffer);
        buffers.extend(parameter.as_ref().map(|parameter| parameter.range.buffer));
        buffers.extend(partials.map(|partials| partials.buffer));
    }
    buffers.sort_unstable();
    buffers.dedup();
    buffers
}

/// Returns the indices of the spans that are not empty, in the order of their addresses.
pub(super) fn in_address_order(spans: &[Span]) -> Vec<usize> {
    let mut order = by_address(spans.iter().map(|span| (span.buffer, span.bytes().start)));
    order.retain(|&index| spans[index].len > 0);
    order
}

/// Returns the indices of places in the order of their addresses: a buffer and a byte in it. Equal places keep their order.
fn by_address(places: impl Iterator<Item = (usize, u64)>) -> Vec<usize> {
    let mut places: Vec<_> = places.zip(0..).collect();
    places.sort_unstable();
    places.into_iter().map(|(_, index)| index).collect()
}

/// Bytes of a gradient that must not overlap with partials.
struct Claim {
    buffer: usize,
    bytes: Range<u64>,
    gradient: usize,
    is_partials: bool,
}

/// Checks that the partials of a gradient share no bytes with those of another, and with no gradient and no parameter: the plan
/// resets them. `is_together` is false if each row is measured on its own.
fn check_partials(
    spans: &[Span],
    is_together: bool,
    parameters: &[Option<Span>],
    reduction: Option<Reduction>,
    labels: &Labels,
) -> Result<(), Error> {
    let Some(reduction) = reduction.filter(|_| spans.iter().any(|span| span.partials.is_some())) else {
        return Ok(());
    };
    let size = reduction.partial_bytes() as u64;
    let mut claims = Vec::new();
    for span in spans {
        let Some(partials) = span.partials else { continue };
        let PartialRange { buffer, first, .. } = partials;
        let rows = if is_together { 1 } else { span.rows };
        let count = rows * partials.count(span.len / rows.max(1));
        let bytes = first * size..(first + count) * size;
        claims.push(Claim { buffer, bytes, gradient: span.gradient, is_partials: true });
    }
    for span in spans.iter().chain(parameters.iter().flatten()).filter(|span| span.len > 0) {
        let Span { buffer, gradient, .. } = *span;
        claims.push(Claim { buffer, bytes: span.bytes(), gradient, is_partials: false });
    }
    // The claims so far that end last: of all of them, and of the partials. Parameters may overlap with each other.
    let (mut last, mut last_partials): (Option<&Claim>, Option<&Claim>) = (None, None);
    for index in by_address(claims.iter().map(|claim| (claim.buffer, claim.bytes.start))) {
        let claim = &claims[index];
        let before = if claim.is_partials { last } else { last_partials };
        if let Some(first) = before.filter(|first| first.buffer == claim.buffer)
            && claim.bytes.start < first.bytes.end
        {
            let (start, end) = (claim.bytes.start, first.bytes.end.min(claim.bytes.end));
            let [first, second] =
                [first, claim].map(|claim| GradientId::new(claim.gradient, labels.get(claim.gradient)));
            return Err(Error::PartialsOverlap { first, second, start, end });
        }
        let is_later = |last: &Claim| (last.buffer, last.bytes.end) < (claim.buffer, claim.bytes.end);
        if last.is_none_or(is_later) {
            last = Some(claim);
        }
        if claim.is_partials && last_partials.is_none_or(is_later) {
            last_partials = Some(claim);
        }
    }
    Ok(())
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
