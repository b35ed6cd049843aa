//! `Partials`: partial sums that another kernel writes, so that the plan need not read the gradient.

use super::buffer_range::{BufferRange, DeviceBuffer};
use super::gradient::Span;
use crate::kernels::Reduction;
use crate::{DType, Error, GradientId};

/// The partials of a gradient, written by the kernel that produces the gradient. The plan reads them to measure the gradient,
/// instead of the gradient itself; declare them with [`Gradient::partials`](crate::Gradient::partials).
///
/// A partial is the contribution of a run of elements to the norm. The gradient is divided into runs of `elements` elements from
/// its start; the last run may be shorter. If each of its [`rows`](crate::Gradient::rows) is clipped by its own norm, each row is
/// divided from its own start. The partials of all runs are consecutive. A gradient cannot have partials if each of its
/// [`columns`](crate::Gradient::columns) is clipped by its own norm.
///
/// A partial takes [`Reduction::partial_bytes`](crate::kernels::Reduction::partial_bytes): 8 bytes, or 16 for a clip with
/// [`tensor_stats`](crate::Clip::tensor_stats). [`kernels::Producer`](crate::kernels::Producer) has the code that computes it
/// in the caller's shader, for the L1, L2 and infinity norms only.
///
/// The plan resets the partials after it has read them. If a kernel has not written them again before the next record, the ticket
/// of that record returns [`Error::PartMissing`]. A new buffer, which is zeroed, counts as not written.
#[derive(Debug, PartialEq, Eq)]
pub struct Partials<'a, B> {
    pub(super) buffer: &'a B,
    offset: u64,
    elements: u64,
}

// A derived implementation would need `B: Clone`.
impl<B> Clone for Partials<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Partials<'_, B> {}

/// Validated partials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartialRange {
    /// Index into the list of distinct buffers.
    pub(super) buffer: usize,
    /// The index of the first partial, counted from the start of the buffer.
    pub(super) first: u64,
    /// The number of elements of a run.
    pub(super) elements: u64,
}

impl PartialRange {
    /// The number of partials of `len` elements.
    pub(super) const fn count(self, len: u64) -> u64 {
        len.div_ceil(self.elements)
    }
}

impl<'a, B> Partials<'a, B> {
    /// Selects the partials at the start of a buffer, one for each run of `elements` elements. The buffer needs the usage
    /// `STORAGE`. Put the partials of many gradients into one buffer: each buffer takes a binding of the kernel that reads
    /// partials.
    #[must_use]
    pub const fn new(buffer: &'a B, elements: u64) -> Self {
        Self { buffer, offset: 0, elements }
    }

    /// Sets the offset of the first partial in the buffer, in bytes. It must be a multiple of the size of a partial.
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self { offset: bytes, ..self }
    }
}

impl<'a, B: DeviceBuffer> Partials<'a, B> {
    /// Validates the partials of a gradient. Its rows and columns are those that have their own norms.
    pub(super) fn resolve(
        &self,
        gradient: &Span,
        reduction: Reduction,
        id: &dyn Fn() -> GradientId,
        index_of: &mut impl FnMut(&'a B) -> usize,
    ) -> Result<PartialRange, Error> {
        let in_partials = |error| Error::InPartials { error: Box::new(error) };
        if !reduction.has_producer() {
            return Err(Error::PartialsNorm { gradient: id() });
        }
        if gradient.columns > 1 {
            return Err(Error::PartialsAndColumns { gradient: id() });
        }
        if self.elements == 0 {
            return Err(Error::EmptyPartials { gradient: id() });
        }
        let size = reduction.partial_bytes() as u64;
        if !self.offset.is_multiple_of(size) {
            let (what, given, multiple) = ("offset", self.offset, size);
            return Err(in_partials(Error::Misaligned { gradient: id(), what, given, multiple }));
        }
        let count =
            gradient.rows.saturating_mul((gradient.len / gradient.rows.max(1)).div_ceil(self.elements));
        let end = self.offset.saturating_add(count.saturating_mul(size));
        let range = BufferRange::whole(self.buffer, DType::F32).with_bytes(self.offset..end);
        range.elements(id).map_err(in_partials)?;
        Ok(PartialRange { buffer: index_of(self.buffer), first: self.offset / size, elements: self.elements })
    }
}
