//! Where a tensor lies: a range of a wgpu buffer, and the checks that it is one of whole elements.

use std::ops::Range;

use super::watched::is_mapped;
use crate::{DType, Error, GradientId};

/// A whole buffer, or a range of one that holds other things too.
#[derive(Clone, Debug)]
pub(super) struct Region<'a> {
    pub(super) buffer: &'a wgpu::Buffer,
    pub(super) dtype: DType,
    pub(super) extent: Extent,
}

#[derive(Clone, Debug)]
pub(super) enum Extent {
    Whole,
    Elements(Range<u64>),
    Bytes(Range<u64>),
}

impl<'a> Region<'a> {
    pub(super) const fn new(buffer: &'a wgpu::Buffer, dtype: DType) -> Self {
        Self { buffer, dtype, extent: Extent::Whole }
    }

    pub(super) const fn with(self, extent: Extent) -> Self {
        Self { extent, ..self }
    }

    /// The elements that it covers, if they are whole ones inside a buffer that can be bound; `id` is for the error.
    pub(super) fn elements(&self, id: &dyn Fn() -> GradientId) -> Result<Range<u64>, Error> {
        self.check_usage(id)?;
        let bytes = self.bytes(id)?;
        if !bytes.is_empty() && is_mapped(self.buffer) {
            return Err(Error::Mapped { gradient: id() });
        }
        let size = self.dtype.size();
        Ok(bytes.start / size..bytes.end / size)
    }

    fn check_usage(&self, id: &dyn Fn() -> GradientId) -> Result<(), Error> {
        let given = self.buffer.usage();
        if given.contains(wgpu::BufferUsages::STORAGE) {
            return Ok(());
        }
        Err(Error::Usage { gradient: id(), given: format!("{given:?}"), needed: "STORAGE" })
    }

    fn bytes(&self, id: &dyn Fn() -> GradientId) -> Result<Range<u64>, Error> {
        let (size, len) = (self.dtype.size(), self.buffer.size());
        let Range { start, end } = match &self.extent {
            Extent::Whole => 0..len,
            // Saturated, a range that no buffer has is still past the end of every buffer.
            Extent::Elements(range) => range.start.saturating_mul(size)..range.end.saturating_mul(size),
            Extent::Bytes(range) => range.clone(),
        };
        if start > end || end > len {
            return Err(Error::OutOfBounds { gradient: id(), start, end, len });
        }
        for (what, given, multiple) in
            [("offset", start, size), ("length", end - start, size), ("buffer", len, 4)]
        {
            // A shader sees words of 4 bytes: a buffer may end within one only if the gradient does not reach there.
            let matters = what != "buffer" || end.next_multiple_of(4) > len;
            if matters && !given.is_multiple_of(multiple) {
                return Err(Error::Misaligned { gradient: id(), what, given, multiple });
            }
        }
        Ok(start..end)
    }
}
