//! A gradient in main memory, and what is to be done with it.

use std::fmt;

use half::{bf16, f16};

use crate::{DType, Error};

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
        Self { elements, group: 0, measured: true, scaled: true }
    }

    /// Which of the clips it belongs to, as an index; 0 unless this is called.
    #[must_use]
    pub const fn group(mut self, group: usize) -> Self {
        self.group = group;
        self
    }

    /// Leave it out of the norm, but scale it with the others. Of the clips that give every gradient a norm of its own
    /// only the loss scale is left for it.
    #[must_use]
    pub const fn unmeasured(mut self) -> Self {
        self.measured = false;
        self
    }

    /// Count it in the norm, but do not write it.
    #[must_use]
    pub const fn unscaled(mut self) -> Self {
        self.scaled = false;
        self
    }

    pub(crate) const fn dtype(&self) -> DType {
        match self.elements {
            ElementsMut::F32(_) => DType::F32,
            ElementsMut::F16(_) => DType::F16,
            ElementsMut::Bf16(_) => DType::BF16,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.elements {
            ElementsMut::F32(elements) => bytemuck::cast_slice(elements),
            ElementsMut::F16(elements) => bytemuck::cast_slice(elements),
            ElementsMut::Bf16(elements) => bytemuck::cast_slice(elements),
        }
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
        let Self { elements, group, measured, scaled } = self;
        let dtype = match elements {
            ElementsMut::F32(_) => "f32",
            ElementsMut::F16(_) => "f16",
            ElementsMut::Bf16(_) => "bf16",
        };
        f.debug_struct("Gradient")
            .field("elements", &format_args!("[{dtype}; {}]", elements.len()))
            .field("group", group)
            .field("measured", measured)
            .field("scaled", scaled)
            .finish()
    }
}

impl Elements<'_> {
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::F32(elements) => elements.len(),
            Self::F16(elements) => elements.len(),
            Self::Bf16(elements) => elements.len(),
        }
    }
}

impl ElementsMut<'_> {
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::F32(elements) => elements.len(),
            Self::F16(elements) => elements.len(),
            Self::Bf16(elements) => elements.len(),
        }
    }
}

/// That every gradient belongs to one of so many groups.
pub(super) fn check_groups(gradients: &[Gradient<'_>], groups: usize) -> Result<(), Error> {
    match gradients.iter().position(|gradient| gradient.group >= groups) {
        Some(gradient) => Err(Error::Group { gradient, given: gradients[gradient].group, groups }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_shown_without_its_elements() {
        let shown = format!("{:?}", Gradient::bf16(&mut [bf16::ONE; 999]).group(3).unscaled());
        assert_eq!(shown, "Gradient { elements: [bf16; 999], group: 3, measured: true, scaled: false }");
    }
}
