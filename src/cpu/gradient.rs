//! A gradient in main memory, and what is to be done with it.

use std::{fmt, iter, mem};

use half::{bf16, f16};

use crate::rows::Rows;
use crate::{DType, Error, GradientId};

/// A gradient in main memory, and the part that it has in a clip.
///
/// ```
/// use gradclip::cpu::Gradient;
///
/// let (mut weight, mut embedding) = ([0.5_f32; 6], [half::bf16::ONE; 8]);
/// let gradients = [Gradient::f32(&mut weight), Gradient::bf16(&mut embedding).group(1)];
/// # let _ = gradients;
/// ```
pub struct Gradient<'a> {
    pub(super) elements: ElementsMut<'a>,
    pub(crate) group: usize,
    pub(crate) measured: bool,
    pub(crate) scaled: bool,
    pub(crate) rows: usize,
    pub(super) parameter: Option<Elements<'a>>,
    pub(crate) label: Option<&'a str>,
}

/// The parameter of a gradient. Only [`Clip::by_parameter_norm`](crate::Clip::by_parameter_norm) reads it, and no clip writes it.
#[derive(Clone, Copy)]
pub struct Parameter<'a> {
    elements: Elements<'a>,
}

/// The elements of a gradient, to be read.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

/// The elements of a gradient, to be written.
pub(super) enum ElementsMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Bf16(&'a mut [bf16]),
}

impl<'a> Gradient<'a> {
    /// A gradient in single precision.
    #[must_use]
    pub const fn f32(elements: &'a mut [f32]) -> Self {
        Self::new(ElementsMut::F32(elements))
    }

    /// A gradient in half precision.
    #[must_use]
    pub const fn f16(elements: &'a mut [f16]) -> Self {
        Self::new(ElementsMut::F16(elements))
    }

    /// A gradient in bfloat16.
    #[must_use]
    pub const fn bf16(elements: &'a mut [bf16]) -> Self {
        Self::new(ElementsMut::Bf16(elements))
    }

    const fn new(elements: ElementsMut<'a>) -> Self {
        Self { elements, group: 0, measured: true, scaled: true, rows: 1, parameter: None, label: None }
    }

    /// Sets a label, such as the name of the parameter, which errors show beside the index.
    #[must_use]
    pub const fn label(mut self, label: &'a str) -> Self {
        self.label = Some(label);
        self
    }

    /// Sets the group: the index of the gradient's clip. The default is 0.
    #[must_use]
    pub const fn group(mut self, group: usize) -> Self {
        self.group = group;
        self
    }

    /// Leaves the gradient out of the norm, but scales it with the others. A clip of each gradient on its own only undoes its
    /// loss scale.
    #[must_use]
    pub const fn unmeasured(mut self) -> Self {
        self.measured = false;
        self
    }

    /// Counts the gradient in the norm, but never writes it.
    #[must_use]
    pub const fn unscaled(mut self) -> Self {
        self.scaled = false;
        self
    }

    /// Splits the gradient into `rows` consecutive rows of equal length; the number is the first of its shape. A clip of each
    /// gradient on its own then clips each row on its own, and returns a record for each. Other clips ignore it. A weight of
    /// the shape `[out, in]` has `out` rows. Empty gradients may have rows too, at most 2²⁰ together.
    #[must_use]
    pub const fn rows(mut self, rows: usize) -> Self {
        self.rows = rows;
        self
    }

    /// The parameter that it is the gradient of, of the same shape; its type may differ.
    #[must_use]
    pub const fn parameter(mut self, parameter: Parameter<'a>) -> Self {
        self.parameter = Some(parameter.elements);
        self
    }

    /// All of it, if it may be written.
    pub(super) fn scaled_elements(&mut self) -> Option<ElementsMut<'_>> {
        self.scaled.then(|| self.elements.reborrow())
    }

    pub(crate) const fn dtype(&self) -> DType {
        self.elements().dtype()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.elements().bytes()
    }

    /// The bytes of its parameter, and their type.
    pub(crate) fn parameter_bytes(&self) -> Option<(&[u8], DType)> {
        self.parameter.map(|parameter| (parameter.bytes(), parameter.dtype()))
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.elements {
            ElementsMut::F32(elements) => bytemuck::cast_slice_mut(elements),
            ElementsMut::F16(elements) => bytemuck::cast_slice_mut(elements),
            ElementsMut::Bf16(elements) => bytemuck::cast_slice_mut(elements),
        }
    }

    pub(super) const fn elements(&self) -> Elements<'_> {
        match &self.elements {
            ElementsMut::F32(elements) => Elements::F32(elements),
            ElementsMut::F16(elements) => Elements::F16(elements),
            ElementsMut::Bf16(elements) => Elements::Bf16(elements),
        }
    }
}

/// Without its elements, of which there may be millions.
impl fmt::Debug for Gradient<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, group, measured, scaled, rows, parameter, .. } = self;
        f.debug_struct("Gradient")
            .field("label", label)
            .field("elements", &self.elements())
            .field("group", group)
            .field("measured", measured)
            .field("scaled", scaled)
            .field("rows", rows)
            .field("parameter", parameter)
            .finish()
    }
}

impl<'a> Parameter<'a> {
    /// A parameter in single precision.
    #[must_use]
    pub const fn f32(elements: &'a [f32]) -> Self {
        Self { elements: Elements::F32(elements) }
    }

    /// A parameter in half precision.
    #[must_use]
    pub const fn f16(elements: &'a [f16]) -> Self {
        Self { elements: Elements::F16(elements) }
    }

    /// A parameter in bfloat16.
    #[must_use]
    pub const fn bf16(elements: &'a [bf16]) -> Self {
        Self { elements: Elements::Bf16(elements) }
    }
}

impl fmt::Debug for Parameter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parameter").field("elements", &self.elements).finish()
    }
}

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

    /// The bytes of one element.
    pub(super) const fn element_size(&self) -> usize {
        match self {
            Self::F32(_) => size_of::<f32>(),
            Self::F16(_) | Self::Bf16(_) => size_of::<f16>(),
        }
    }

    const fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::Bf16(_) => DType::BF16,
        }
    }

    fn bytes(self) -> &'a [u8] {
        match self {
            Self::F32(elements) => bytemuck::cast_slice(elements),
            Self::F16(elements) => bytemuck::cast_slice(elements),
            Self::Bf16(elements) => bytemuck::cast_slice(elements),
        }
    }

    /// One of so many rows.
    pub(super) fn row(self, row: usize, rows: usize) -> Self {
        let len = self.len() / rows;
        self.split_at(row * len).1.split_at(len).0
    }

    /// The first `middle` elements, and the rest.
    #[inline]
    pub(super) fn split_at(self, middle: usize) -> (Self, Self) {
        match self {
            Self::F32(elements) => both(elements.split_at(middle), Self::F32),
            Self::F16(elements) => both(elements.split_at(middle), Self::F16),
            Self::Bf16(elements) => both(elements.split_at(middle), Self::Bf16),
        }
    }

    /// Pieces of `len` elements; the last may be shorter.
    pub(super) fn pieces(self, len: usize) -> impl Iterator<Item = Self> {
        let mut rest = self;
        iter::from_fn(move || Some(rest.split_off_front(len)).filter(|piece| piece.len() > 0))
    }

    /// Takes the first `len` elements, or all if they are fewer.
    #[inline]
    pub(super) fn split_off_front(&mut self, len: usize) -> Self {
        let front;
        (front, *self) = self.split_at(len.min(self.len()));
        front
    }
}

/// Wraps both parts of a slice.
#[inline]
fn both<S, E>((left, right): (S, S), wrap: impl Fn(S) -> E) -> (E, E) {
    (wrap(left), wrap(right))
}

impl ElementsMut<'_> {
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::F32(elements) => elements.len(),
            Self::F16(elements) => elements.len(),
            Self::Bf16(elements) => elements.len(),
        }
    }

    /// The bytes of one element.
    pub(super) const fn element_size(&self) -> usize {
        match self {
            Self::F32(_) => size_of::<f32>(),
            Self::F16(_) | Self::Bf16(_) => size_of::<f16>(),
        }
    }

    /// The same elements, for a shorter time.
    pub(super) fn reborrow(&mut self) -> ElementsMut<'_> {
        match self {
            Self::F32(elements) => ElementsMut::F32(elements),
            Self::F16(elements) => ElementsMut::F16(elements),
            Self::Bf16(elements) => ElementsMut::Bf16(elements),
        }
    }

    /// The first `middle` elements, and the rest.
    #[inline]
    pub(super) fn split_at(self, middle: usize) -> (Self, Self) {
        match self {
            Self::F32(elements) => both(elements.split_at_mut(middle), Self::F32),
            Self::F16(elements) => both(elements.split_at_mut(middle), Self::F16),
            Self::Bf16(elements) => both(elements.split_at_mut(middle), Self::Bf16),
        }
    }

    /// Takes the first `len` elements, or all if they are fewer.
    #[inline]
    pub(super) fn split_off_front(&mut self, len: usize) -> Self {
        let all = mem::replace(self, Self::F32(&mut []));
        let len = len.min(all.len());
        let front;
        (front, *self) = all.split_at(len);
        front
    }

    /// All of so many rows.
    pub(super) fn rows(self, rows: usize) -> Vec<Self> {
        // Empty rows are nothing to change.
        let len = (self.len() / rows).max(1);
        self.pieces(len)
    }

    /// Pieces of `len` elements; the last may be shorter.
    pub(super) fn pieces(self, len: usize) -> Vec<Self> {
        match self {
            Self::F32(elements) => elements.chunks_mut(len).map(Self::F32).collect(),
            Self::F16(elements) => elements.chunks_mut(len).map(Self::F16).collect(),
            Self::Bf16(elements) => elements.chunks_mut(len).map(Self::Bf16).collect(),
        }
    }
}

/// That every gradient belongs to one of so many groups, has rows of the same length, and its parameter if it needs one.
pub(super) fn check(gradients: &[Gradient<'_>], groups: usize, with_parameters: bool) -> Result<(), Error> {
    let mut all_rows = Rows::default();
    for (index, gradient) in gradients.iter().enumerate() {
        let Gradient { group, measured, rows, parameter, label, .. } = *gradient;
        let id = || GradientId::new(index, label);
        let elements = gradient.elements.len();
        if group >= groups {
            return Err(Error::GroupWithoutClip { gradient: id(), given: group, groups });
        }
        all_rows.check(&id, rows as u64, elements as u64)?;
        if !with_parameters {
            continue;
        }
        match parameter.map(|parameter| parameter.len()) {
            None if measured => return Err(Error::MissingParameter { gradient: id() }),
            Some(len) if len != elements => {
                let (given, needed) = (len as u64, elements as u64);
                return Err(Error::ParameterLength { gradient: id(), given, needed });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_shown_without_its_elements() {
        let shown = format!("{:?}", Gradient::bf16(&mut [bf16::ONE; 999]).group(3).unscaled());
        assert_eq!(
            shown,
            "Gradient { label: None, elements: [BF16; 999], group: 3, measured: true, scaled: false, rows: 1, parameter: None }"
        );
    }
}
