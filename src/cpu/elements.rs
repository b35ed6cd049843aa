//! Slices of elements of any supported type.

use std::{fmt, iter, mem};

use half::{bf16, f16};

use crate::DType;

/// A slice of elements.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

/// A mutable slice of elements.
pub(super) enum ElementsMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Bf16(&'a mut [bf16]),
}

/// Shows the type and the length, not the elements: there may be millions.
impl fmt::Debug for Elements<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:?}; {}]", self.dtype(), self.len())
    }
}

impl<'a> Elements<'a> {
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::F32(elements) => elements.len(),
            Self::F16(elements) => elements.len(),
            Self::Bf16(elements) => elements.len(),
        }
    }

    /// Returns the size of an element in bytes.
    pub(super) const fn element_size(&self) -> usize {
        match self {
            Self::F32(_) => size_of::<f32>(),
            Self::F16(_) | Self::Bf16(_) => size_of::<f16>(),
        }
    }

    pub(super) const fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::Bf16(_) => DType::BF16,
        }
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Self::F32(elements) => bytemuck::cast_slice(elements),
            Self::F16(elements) => bytemuck::cast_slice(elements),
            Self::Bf16(elements) => bytemuck::cast_slice(elements),
        }
    }

    /// Returns row `row` of `rows` rows of equal length.
    pub(super) fn row(self, row: usize, rows: usize) -> Self {
        let len = self.len() / rows;
        self.split_at(row * len).1.split_at(len).0
    }

    /// Splits at `middle`.
    #[inline]
    pub(super) fn split_at(self, middle: usize) -> (Self, Self) {
        match self {
            Self::F32(elements) => both(elements.split_at(middle), Self::F32),
            Self::F16(elements) => both(elements.split_at(middle), Self::F16),
            Self::Bf16(elements) => both(elements.split_at(middle), Self::Bf16),
        }
    }

    /// Splits into chunks of `len` elements. The last may be shorter.
    pub(super) fn chunks(self, len: usize) -> impl Iterator<Item = Self> {
        let mut rest = self;
        iter::from_fn(move || Some(rest.split_off_front(len)).filter(|chunk| chunk.len() > 0))
    }

    /// Removes and returns the first `len` elements, or all if there are fewer.
    #[inline]
    pub(super) fn split_off_front(&mut self, len: usize) -> Self {
        let front;
        (front, *self) = self.split_at(len.min(self.len()));
        front
    }
}

/// Wraps both halves of a split slice.
#[inline]
fn both<S, E>((left, right): (S, S), wrap: impl Fn(S) -> E) -> (E, E) {
    (wrap(left), wrap(right))
}

impl ElementsMut<'_> {
    pub(super) const fn as_ref(&self) -> Elements<'_> {
        match self {
            Self::F32(elements) => Elements::F32(elements),
            Self::F16(elements) => Elements::F16(elements),
            Self::Bf16(elements) => Elements::Bf16(elements),
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(elements) => bytemuck::cast_slice_mut(elements),
            Self::F16(elements) => bytemuck::cast_slice_mut(elements),
            Self::Bf16(elements) => bytemuck::cast_slice_mut(elements),
        }
    }

    pub(super) const fn len(&self) -> usize {
        match self {
            Self::F32(elements) => elements.len(),
            Self::F16(elements) => elements.len(),
            Self::Bf16(elements) => elements.len(),
        }
    }

    /// Returns the size of an element in bytes.
    pub(super) const fn element_size(&self) -> usize {
        match self {
            Self::F32(_) => size_of::<f32>(),
            Self::F16(_) | Self::Bf16(_) => size_of::<f16>(),
        }
    }

    /// Borrows the elements for a shorter lifetime.
    pub(super) fn reborrow(&mut self) -> ElementsMut<'_> {
        match self {
            Self::F32(elements) => ElementsMut::F32(elements),
            Self::F16(elements) => ElementsMut::F16(elements),
            Self::Bf16(elements) => ElementsMut::Bf16(elements),
        }
    }

    /// Splits at `middle`.
    #[inline]
    pub(super) fn split_at(self, middle: usize) -> (Self, Self) {
        match self {
            Self::F32(elements) => both(elements.split_at_mut(middle), Self::F32),
            Self::F16(elements) => both(elements.split_at_mut(middle), Self::F16),
            Self::Bf16(elements) => both(elements.split_at_mut(middle), Self::Bf16),
        }
    }

    /// Removes and returns the first `len` elements, or all if there are fewer.
    #[inline]
    pub(super) fn split_off_front(&mut self, len: usize) -> Self {
        let all = mem::replace(self, Self::F32(&mut []));
        let len = len.min(all.len());
        let front;
        (front, *self) = all.split_at(len);
        front
    }

    /// Splits into `rows` rows of equal length. Returns no rows if they would be empty.
    pub(super) fn rows(self, rows: usize) -> Vec<Self> {
        let len = (self.len() / rows).max(1);
        self.chunks(len)
    }

    /// Splits into chunks of `len` elements. The last may be shorter.
    pub(super) fn chunks(self, len: usize) -> Vec<Self> {
        match self {
            Self::F32(elements) => elements.chunks_mut(len).map(Self::F32).collect(),
            Self::F16(elements) => elements.chunks_mut(len).map(Self::F16).collect(),
            Self::Bf16(elements) => elements.chunks_mut(len).map(Self::Bf16).collect(),
        }
    }
}
