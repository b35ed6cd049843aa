//! The input of a clip: gradients in main memory and their parameters, with validation.

use std::fmt;

use half::{bf16, f16};

use super::elements::{Elements, ElementsMut};
use crate::rows::RowLimit;
use crate::{DType, Error, GradientId};

/// A gradient in main memory, with its options in a clip.
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
    pub(crate) columns: usize,
    pub(super) parameter: Option<Elements<'a>>,
    pub(crate) label: Option<&'a str>,
}

/// The parameter of a gradient. Only [`Clip::by_parameter_norm`](crate::Clip::by_parameter_norm) reads it, and no clip
/// writes it.
#[derive(Clone, Copy)]
pub struct Parameter<'a> {
    elements: Elements<'a>,
}

impl<'a> Gradient<'a> {
    /// Creates a gradient of f32 elements.
    #[must_use]
    pub const fn f32(elements: &'a mut [f32]) -> Self {
        Self::new(ElementsMut::F32(elements))
    }

    /// Creates a gradient of f16 elements.
    #[must_use]
    pub const fn f16(elements: &'a mut [f16]) -> Self {
        Self::new(ElementsMut::F16(elements))
    }

    /// Creates a gradient of bf16 elements.
    #[must_use]
    pub const fn bf16(elements: &'a mut [bf16]) -> Self {
        Self::new(ElementsMut::Bf16(elements))
    }

    const fn new(elements: ElementsMut<'a>) -> Self {
        Self {
            elements,
            group: 0,
            measured: true,
            scaled: true,
            rows: 1,
            columns: 1,
            parameter: None,
            label: None,
        }
    }

    /// Sets a label, such as the name of the parameter. Error messages show it next to the index.
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

    /// Excludes the gradient from the norm, but scales it with the others. A clip with one norm per gradient only
    /// removes the loss scale from it.
    #[must_use]
    pub const fn unmeasured(mut self) -> Self {
        self.measured = false;
        self
    }

    /// Includes the gradient in the norm, but never writes it.
    #[must_use]
    pub const fn unscaled(mut self) -> Self {
        self.scaled = false;
        self
    }

    /// Splits the gradient along its first dimension into `rows` consecutive rows of equal length: a weight of shape
    /// `[out, in]` has `out` rows. A clip with one norm per gradient then clips each row by its own norm, and returns
    /// one record per row. Other clips ignore the rows. Empty gradients may have at most 2²⁰ rows in total.
    #[must_use]
    pub const fn rows(mut self, rows: usize) -> Self {
        self.rows = rows;
        self
    }

    /// Splits the gradient, a matrix of `columns` columns whose rows are consecutive, into its columns: column j has the
    /// elements whose index is j modulo `columns`. A weight of shape `[in, out]`, as in JAX, has `out` columns. A clip
    /// with one norm per gradient then clips each column by its own norm, and returns one record per column. Other clips
    /// ignore the columns.
    ///
    /// A gradient has rows or columns, not both ([`Error::RowsAndColumns`]); the number of its elements is a multiple of
    /// `columns` ([`Error::Columns`]). Empty columns count as empty rows do.
    ///
    /// ```
    /// use gradclip::{Clip, cpu, cpu::Gradient};
    ///
    /// let mut matrix = [3.0, 0.3, 4.0, 0.4];
    /// let records = cpu::clip(&mut [Gradient::f32(&mut matrix).columns(2)], Clip::by_norm(1.0))?;
    /// assert_eq!((records[0].total_norm, records[1].clipped()), (5.0, false));
    /// assert!((matrix[0] - 0.6).abs() < 1e-6 && matrix[1] == 0.3);
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub const fn columns(mut self, columns: usize) -> Self {
        self.columns = columns;
        self
    }

    /// Returns the number of elements.
    pub(crate) const fn len(&self) -> usize {
        self.elements().len()
    }

    /// Returns the number of units with their own norm: rows or columns.
    pub(crate) const fn units(&self) -> usize {
        // One of the two is 1.
        if self.columns == 1 { self.rows } else { self.columns }
    }

    /// Sets the parameter that the gradient belongs to. It must have the same shape, but its element type may differ.
    #[must_use]
    pub const fn parameter(mut self, parameter: Parameter<'a>) -> Self {
        self.parameter = Some(parameter.elements);
        self
    }

    /// Returns the elements, unless the gradient is unscaled.
    pub(super) fn scaled_elements(&mut self) -> Option<ElementsMut<'_>> {
        self.scaled.then(|| self.elements.reborrow())
    }

    pub(crate) const fn dtype(&self) -> DType {
        self.elements().dtype()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.elements().bytes()
    }

    /// Returns the bytes and the type of the parameter.
    pub(crate) fn parameter_bytes(&self) -> Option<(&[u8], DType)> {
        self.parameter.map(|parameter| (parameter.bytes(), parameter.dtype()))
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.elements.bytes_mut()
    }

    pub(super) const fn elements(&self) -> Elements<'_> {
        self.elements.as_ref()
    }
}

/// Shows the type and the number of the elements, not their values.
impl fmt::Debug for Gradient<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, group, measured, scaled, rows, columns, parameter, .. } = self;
        f.debug_struct("Gradient")
            .field("label", label)
            .field("elements", &self.elements())
            .field("group", group)
            .field("measured", measured)
            .field("scaled", scaled)
            .field("rows", rows)
            .field("columns", columns)
            .field("parameter", parameter)
            .finish()
    }
}

impl<'a> Parameter<'a> {
    /// Creates a parameter of f32 elements.
    #[must_use]
    pub const fn f32(elements: &'a [f32]) -> Self {
        Self { elements: Elements::F32(elements) }
    }

    /// Creates a parameter of f16 elements.
    #[must_use]
    pub const fn f16(elements: &'a [f16]) -> Self {
        Self { elements: Elements::F16(elements) }
    }

    /// Creates a parameter of bf16 elements.
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

/// Checks the group, the rows and, if `with_parameters`, the parameter of each gradient.
pub(super) fn validate(
    gradients: &[Gradient<'_>],
    groups: usize,
    with_parameters: bool,
) -> Result<(), Error> {
    let mut row_limit = RowLimit::default();
    for (index, gradient) in gradients.iter().enumerate() {
        let Gradient { group, measured, rows, columns, parameter, label, .. } = *gradient;
        let id = || GradientId::new(index, label);
        let elements = gradient.elements.len();
        if group >= groups {
            return Err(Error::GroupWithoutClip { gradient: id(), given: group, groups });
        }
        row_limit.check(&id, rows as u64, columns as u64, elements as u64)?;
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
    fn debug_shows_no_elements() {
        let shown = format!("{:?}", Gradient::bf16(&mut [bf16::ONE; 999]).group(3).unscaled());
        assert_eq!(
            shown,
            "Gradient { label: None, elements: [BF16; 999], group: 3, measured: true, scaled: false, rows: 1, columns: 1, parameter: None }"
        );
    }
}
