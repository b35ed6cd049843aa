//! What to clip: a gradient as a range of a wgpu buffer, and the checks that nothing is clipped which should not be.

use std::collections::HashMap;
use std::ops::Range;

use crate::{DType, Error};

/// One gradient: a whole buffer, or a range of one that holds other things too.
///
/// Its shape does not matter, as long as its elements lie side by side. The buffer needs the usage
/// [`STORAGE`](wgpu::BufferUsages::STORAGE); nothing outside the range is taken into the result, or written.
#[derive(Clone, Debug)]
pub struct Gradient<'a> {
    buffer: &'a wgpu::Buffer,
    dtype: DType,
    extent: Extent,
    group: usize,
    measured: bool,
    scaled: bool,
}

#[derive(Clone, Debug)]
enum Extent {
    Whole,
    Elements(Range<u64>),
    Bytes(Range<u64>),
}

impl<'a> Gradient<'a> {
    /// All of a buffer.
    #[must_use]
    pub const fn new(buffer: &'a wgpu::Buffer, dtype: DType) -> Self {
        Self { buffer, dtype, extent: Extent::Whole, group: 0, measured: true, scaled: true }
    }

    /// Only these elements, counted from the start of the buffer. The range may begin at any element and may be empty.
    #[must_use]
    pub const fn elements(self, range: Range<u64>) -> Self {
        Self { extent: Extent::Elements(range), ..self }
    }

    /// Only these bytes of the buffer: for pools that hand out byte offsets. Both ends must be multiples of the
    /// element's size.
    #[must_use]
    pub const fn bytes(self, range: Range<u64>) -> Self {
        Self { extent: Extent::Bytes(range), ..self }
    }

    /// Which of the clips of [`Clipper::prepare_groups`](crate::Clipper::prepare_groups) it belongs to; the first, unless
    /// this is called.
    #[must_use]
    pub const fn group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Leaves it out of the norm; it is scaled with the others.
    #[must_use]
    pub const fn unmeasured(self) -> Self {
        Self { measured: false, ..self }
    }

    /// Counts it in the norm, but never writes it.
    #[must_use]
    pub const fn unscaled(self) -> Self {
        Self { scaled: false, ..self }
    }

    /// The bytes it covers, if they are whole elements inside the buffer; `index` is for the error.
    fn byte_range(&self, index: usize) -> Result<Range<u64>, Error> {
        let (size, len) = (self.dtype.size(), self.buffer.size());
        let Range { start, end } = match &self.extent {
            Extent::Whole => 0..len,
            // Saturated, a range that no buffer has is still past the end of every buffer.
            Extent::Elements(range) => range.start.saturating_mul(size)..range.end.saturating_mul(size),
            Extent::Bytes(range) => range.clone(),
        };
        if start > end || end > len {
            return Err(Error::OutOfBounds { gradient: index, start, end, len });
        }
        for (what, given, multiple) in
            [("offset", start, size), ("length", end - start, size), ("buffer", len, 4)]
        {
            // A shader sees words of 4 bytes: a buffer may end within one only if the gradient does not reach there.
            let matters = what != "buffer" || end.next_multiple_of(4) > len;
            if matters && !given.is_multiple_of(multiple) {
                return Err(Error::Misaligned { gradient: index, what, given, multiple });
            }
        }
        Ok(start..end)
    }

    fn check_usage(&self, index: usize) -> Result<(), Error> {
        let given = self.buffer.usage();
        if given.contains(wgpu::BufferUsages::STORAGE) {
            return Ok(());
        }
        Err(Error::Usage { gradient: index, given: format!("{given:?}"), needed: "STORAGE" })
    }
}

/// Where a gradient lies, and what is to be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Index into the list of distinct buffers.
    pub(super) buffer: usize,
    pub(super) dtype: DType,
    /// In elements from the start of the buffer.
    pub(super) start: u64,
    /// In elements.
    pub(super) len: u64,
    pub(super) group: usize,
    pub(super) measured: bool,
    pub(super) scaled: bool,
}

impl Span {
    fn bytes(&self) -> Range<u64> {
        self.start * self.dtype.size()..(self.start + self.len) * self.dtype.size()
    }
}

/// The distinct buffers of some gradients in order of their first appearance, and where in them each gradient lies.
/// Each belongs to one of so many groups.
pub(super) fn resolve<'a>(
    gradients: &[Gradient<'a>],
    groups: usize,
) -> Result<(Vec<&'a wgpu::Buffer>, Vec<Span>), Error> {
    let mut buffers = Vec::new();
    #[expect(clippy::mutable_key_type, reason = "a buffer is hashed and compared by its identity")]
    let mut index_of = HashMap::new();
    let mut spans = Vec::with_capacity(gradients.len());
    for (index, gradient) in gradients.iter().enumerate() {
        gradient.check_usage(index)?;
        let &Gradient { dtype, group, measured, scaled, .. } = gradient;
        if group >= groups {
            return Err(Error::Group { gradient: index, given: group, groups });
        }
        let bytes = gradient.byte_range(index)?;
        let buffer = *index_of.entry(gradient.buffer).or_insert_with(|| {
            buffers.push(gradient.buffer);
            buffers.len() - 1
        });
        let (start, len) = (bytes.start / dtype.size(), (bytes.end - bytes.start) / dtype.size());
        spans.push(Span { buffer, dtype, start, len, group, measured, scaled });
    }
    Ok((buffers, spans))
}

/// The indices of the gradients that are not empty, in the order in which they lie in the buffers. No two may overlap.
pub(super) fn in_address_order(spans: &[Span]) -> Result<Vec<usize>, Error> {
    let mut order: Vec<usize> = (0..spans.len()).filter(|&index| spans[index].len > 0).collect();
    order.sort_unstable_by_key(|&index| (spans[index].buffer, spans[index].bytes().start, index));
    for pair in order.windows(2) {
        let (first, second) = (&spans[pair[0]], &spans[pair[1]]);
        let (one, other) = (first.bytes(), second.bytes());
        if first.buffer == second.buffer && other.start < one.end {
            let (start, end) = (other.start, one.end.min(other.end));
            return Err(Error::Overlap { first: pair[0], second: pair[1], start, end });
        }
    }
    Ok(order)
}
