//! `Origin`: the input of a plan, the buffers that it uses, and the same plan for gradients that have moved.

use super::gradient::{Set, Span};
use super::labels::Labels;
use super::{DeviceBuffer, Gradient, Limits, Plan};
use crate::operation::Operation;
use crate::shown::Shown;
use crate::{Error, GradientId};

/// The input of a plan, except for the buffers of the gradients.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) operations: Box<[Operation]>,
    pub(super) limits: Limits,
    pub(super) set: Set,
}

impl Plan {
    /// Plans the same clip for the same gradients in other buffers or ranges. Returns the new plan and the distinct buffers of the
    /// gradients. A host keeps the [kept](super::PlanBuffer::is_kept) buffers and their contents.
    ///
    /// # Errors
    ///
    /// [`Error::RebindCount`] or [`Error::RebindMismatch`] if the list differs from that of the plan in more than buffers, ranges
    /// and labels; the errors of [`Plan::new`].
    pub fn rebound<'a, B: DeviceBuffer>(
        &self,
        gradients: &[Gradient<'a, B>],
    ) -> Result<(Self, Vec<&'a B>), Error> {
        let Origin { operations, limits, set } = &self.origin;
        let (moved, buffers) = Set::resolve(gradients, operations, set.total_elements)?;
        moved.check_same(set)?;
        Ok((Self::build(moved, operations, *limits)?, buffers))
    }

    /// Returns the number of elements, the group and the measured flag of each gradient.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (u64, usize, bool)> {
        self.origin.set.spans.iter().map(|span| (span.len, span.group, span.measured))
    }

    /// Returns the first gradient with more than one row or column.
    pub(crate) fn first_with_units(&self) -> Option<usize> {
        self.origin.set.spans.iter().position(|span| (span.rows, span.columns) != (1, 1))
    }

    /// Returns each use of a distinct buffer: the gradient, the kind of use, and the index of the buffer. All gradients come first,
    /// then their parameters, then their partials.
    pub fn uses(&self) -> impl Iterator<Item = (GradientId, Use, usize)> {
        let Set { spans, parameters, .. } = &self.origin.set;
        let of = |what| move |span: &Span| (self.gradient_id(span.gradient), what, span.buffer);
        let is_used = |span: &&Span| span.len > 0;
        let partials = spans
            .iter()
            .filter_map(|span| Some((self.gradient_id(span.gradient), Use::Partials, span.partials?.buffer)));
        let gradients = spans.iter().filter(is_used).map(of(Use::Gradient));
        gradients.chain(parameters.iter().flatten().filter(is_used).map(of(Use::Parameter))).chain(partials)
    }

    /// Returns the index and the label of a gradient.
    #[must_use]
    pub fn gradient_id(&self, gradient: usize) -> GradientId {
        GradientId::new(gradient, self.label(gradient))
    }
}

/// Why a plan uses a buffer of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Its elements.
    Gradient,
    /// Its parameter.
    Parameter,
    /// Its partials.
    Partials,
}

impl Use {
    /// Returns the error for a buffer of this use.
    #[must_use]
    pub fn error(self, error: Error) -> Error {
        match self {
            Self::Gradient => error,
            Self::Parameter => Error::InParameter { error: Box::new(error) },
            Self::Partials => Error::InPartials { error: Box::new(error) },
        }
    }
}

impl Set {
    /// Checks that gradients differ from those of a plan only in buffers, ranges and labels.
    fn check_same(&self, planned: &Self) -> Result<(), Error> {
        let (given, needed) = (self.spans.len(), planned.spans.len());
        if given != needed {
            return Err(Error::RebindCount { given, needed });
        }
        let labels = &self.labels;
        if given > 0 {
            // Without a part, a gradient is in part 0, but a plan without parts has no part 0 to encode.
            same(0, labels, "number of parts", &self.parts, &planned.parts)?;
        }
        for (given, needed) in self.spans.iter().zip(&planned.spans) {
            same(given.gradient, labels, "number of rows", &given.rows, &needed.rows)?;
        }
        for (given, needed) in self.spans.iter().zip(&planned.spans) {
            same(given.gradient, labels, "number of columns", &given.columns, &needed.columns)?;
        }
        // An unmeasured gradient may have a parameter or not.
        let parameters = self.parameters.iter().zip(&planned.parameters);
        let parameters = parameters.filter_map(|(given, needed)| given.as_ref().zip(needed.as_ref()));
        for (given, needed) in self.spans.iter().zip(&planned.spans).chain(parameters) {
            let at = given.gradient;
            same(at, labels, "number of elements", &given.len, &needed.len)?;
            same(at, labels, "element type", &given.dtype, &needed.dtype)?;
            same(at, labels, "group", &given.group, &needed.group)?;
            same(at, labels, "part", &given.part, &needed.part)?;
            same(at, labels, "share in the norm", &given.measured, &needed.measured)?;
            same(at, labels, "share in the scaling", &given.scaled, &needed.scaled)?;
            let elements = |span: &Span| span.partials.map(|partials| partials.elements);
            same(at, labels, "length of partials", &elements(given), &elements(needed))?;
        }
        Ok(())
    }
}

fn same<T: PartialEq + Shown>(
    gradient: usize,
    labels: &Labels,
    what: &'static str,
    given: &T,
    needed: &T,
) -> Result<(), Error> {
    if given == needed { Ok(()) } else { Err(mismatch(gradient, labels, what, given, needed)) }
}

fn mismatch(
    gradient: usize,
    labels: &Labels,
    what: &'static str,
    given: &dyn Shown,
    needed: &dyn Shown,
) -> Error {
    let gradient = GradientId::new(gradient, labels.get(gradient));
    Error::RebindMismatch { gradient, what, given: given.shown(), needed: needed.shown() }
}
