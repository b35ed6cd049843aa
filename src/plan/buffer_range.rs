//! `BufferRange`: a validated range of elements in a device buffer.

use std::ops::Range;

use crate::{DType, Error, GradientId};

/// A buffer of a GPU API, as far as a plan looks at it. Two references mean the same buffer if they are equal. Any order will do: a
/// plan sorts by it to find equal buffers.
pub trait DeviceBuffer: Ord {
    /// Returns the size in bytes.
    fn size(&self) -> u64;

    /// Checks that a shader may bind the buffer as storage.
    ///
    /// # Errors
    ///
    /// The usage of a buffer without `STORAGE`, as its API writes it.
    fn check_usage(&self) -> Result<(), String>;

    /// Returns whether the buffer is mapped. No commands that use it can be submitted then.
    fn is_mapped(&self) -> bool;
}

/// The elements of a tensor: a whole buffer, or a range of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BufferRange<'a, B> {
    pub(super) buffer: &'a B,
    pub(super) dtype: DType,
    selection: Selection,
}

/// The selected part of a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Selection {
    Whole,
    Elements(Range<u64>),
    Bytes(Range<u64>),
}

impl<'a, B> BufferRange<'a, B> {
    /// Selects the whole buffer.
    pub(super) const fn whole(buffer: &'a B, dtype: DType) -> Self {
        Self { buffer, dtype, selection: Selection::Whole }
    }

    /// Selects elements, counted from the start of the buffer.
    pub(super) const fn with_elements(self, range: Range<u64>) -> Self {
        Self { selection: Selection::Elements(range), ..self }
    }

    /// Selects bytes, counted from the start of the buffer.
    pub(super) const fn with_bytes(self, range: Range<u64>) -> Self {
        Self { selection: Selection::Bytes(range), ..self }
    }
}

impl<B: DeviceBuffer> BufferRange<'_, B> {
    /// Validates the range and returns it in elements. `id` names the gradient in errors.
    ///
    /// # Errors
    ///
    /// [`Error::BufferUsage`], [`Error::OutOfBounds`], [`Error::Misaligned`], or [`Error::BufferMapped`].
    pub(super) fn elements(&self, id: &dyn Fn() -> GradientId) -> Result<Range<u64>, Error> {
        let usage = self.buffer.check_usage();
        usage.map_err(|given| Error::BufferUsage { gradient: id(), given, needed: "STORAGE" })?;
        let bytes = self.bytes(id)?;
        if !bytes.is_empty() && self.buffer.is_mapped() {
            return Err(Error::BufferMapped { gradient: id() });
        }
        let size = self.dtype.size();
        Ok(bytes.start / size..bytes.end / size)
    }

    fn bytes(&self, id: &dyn Fn() -> GradientId) -> Result<Range<u64>, Error> {
        let (size, len) = (self.dtype.size(), self.buffer.size());
        let Range { start, end } = match &self.selection {
            Selection::Whole => 0..len,
            // A saturated bound is past the end of every buffer, so the check below rejects it.
            Selection::Elements(range) => range.start.saturating_mul(size)..range.end.saturating_mul(size),
            Selection::Bytes(range) => range.clone(),
        };
        if start > end || end > len {
            return Err(Error::OutOfBounds { gradient: id(), start, end, len });
        }
        for (what, given, multiple) in
            [("offset", start, size), ("length", end - start, size), ("buffer", len, 4)]
        {
            // Shaders read words of 4 bytes. A buffer may end inside a word only if the range does not reach that word.
            let matters = what != "buffer" || end.next_multiple_of(4) > len;
            if matters && !given.is_multiple_of(multiple) {
                return Err(Error::Misaligned { gradient: id(), what, given, multiple });
            }
        }
        Ok(start..end)
    }
}
