//! `BufferRange`: a validated range of elements in a wgpu buffer.

use std::ops::Range;

use super::error_scope::is_mapped;
use crate::{DType, Error, GradientId};

/// The elements of a tensor: a whole buffer, or a range of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BufferRange<'a> {
    pub(super) buffer: &'a wgpu::Buffer,
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

impl<'a> BufferRange<'a> {
    /// Selects the whole buffer.
    pub(super) const fn whole(buffer: &'a wgpu::Buffer, dtype: DType) -> Self {
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

    /// Validates the range and returns it in elements. `id` names the gradient in errors.
    ///
    /// # Errors
    ///
    /// [`Error::BufferUsage`], [`Error::OutOfBounds`], [`Error::Misaligned`], or [`Error::BufferMapped`].
    pub(super) fn elements(&self, id: &dyn Fn() -> GradientId) -> Result<Range<u64>, Error> {
        self.check_usage(id)?;
        let bytes = self.bytes(id)?;
        if !bytes.is_empty() && is_mapped(self.buffer) {
            return Err(Error::BufferMapped { gradient: id() });
        }
        let size = self.dtype.size();
        Ok(bytes.start / size..bytes.end / size)
    }

    fn check_usage(&self, id: &dyn Fn() -> GradientId) -> Result<(), Error> {
        let given = self.buffer.usage();
        if given.contains(wgpu::BufferUsages::STORAGE) {
            return Ok(());
        }
        Err(Error::BufferUsage { gradient: id(), given: format!("{given:?}"), needed: "STORAGE" })
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
