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
    operations: Box<[Operation]>,
    limits: Limits,
    /// The gradients, followed by their parameters if the clip reads them.
    spans: Box<[Option<Span>]>,
    rows: Box<[u64]>,
    columns: Box<[u64]>,
    /// The number of parts; 0 unless a gradient is in one.
    parts: usize,
    /// See [`Set::total_elements`].
    total_elements: Option<u64>,
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
        let Origin { operations, limits, total_elements, .. } = &self.origin;
        let set = Set { total_elements: *total_elements, ..Set::resolve(gradients, operations)? };
        self.origin.check_same(&set)?;
        Ok((Self::build(&set, operations, *limits)?, set.buffers))
    }

    /// Returns the number of elements, the group and the measured flag of each gradient.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (u64, usize, bool)> {
        let Origin { spans, rows, .. } = &self.origin;
        spans.iter().take(rows.len()).flatten().map(|span| (span.len, span.group, span.measured))
    }

    /// Returns the first gradient with more than one row or column.
    pub(crate) fn first_with_units(&self) -> Option<usize> {
        let Origin { rows, columns, .. } = &self.origin;
        rows.iter().zip(columns).position(|units| units != (&1, &1))
    }

    /// Returns each use of a distinct buffer: the gradient, the kind of use, and the index of the buffer. All gradients come first,
    /// then their parameters, then their partials.
    pub fn uses(&self) -> impl Iterator<Item = (GradientId, Use, usize)> {
        let Origin { spans, rows, .. } = &self.origin;
        let (gradients, parameters) = spans.split_at(rows.len());
        let of = |what| move |span: &Span| (self.gradient_id(span.gradient), what, span.buffer);
        let is_used = |span: &&Span| span.len > 0;
        let partials = gradients
            .iter()
            .flatten()
            .filter_map(|span| Some((self.gradient_id(span.gradient), Use::Partials, span.partials?.buffer)));
        let gradients = gradients.iter().flatten().filter(is_used).map(of(Use::Gradient));
        gradients.chain(parameters.iter().flatten().filter(is_used).map(of(Use::Parameter))).chain(partials)
    }

    /// Returns the index and the label of a gradient.
    #[must_use]
    pub fn gradient_id(&self, gradient: usize) -> GradientId {
        GradientId::new(gradient, self.labels.get(gradient))
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

fn spans_of<'a, B>(set: &'a Set<'_, B>) -> impl Iterator<Item = Option<Span>> + 'a {
    set.spans.iter().copied().map(Some).chain(set.parameters.iter().copied())
}

impl Origin {
    pub(super) fn new<B>(set: &Set<'_, B>, operations: &[Operation], limits: Limits) -> Self {
        Self {
            operations: operations.into(),
            limits,
            spans: spans_of(set).collect(),
            parts: set.parts,
            total_elements: set.total_elements,
            rows: set.rows.as_slice().into(),
            columns: set.columns.as_slice().into(),
        }
    }

    /// Checks that gradients differ from those of the plan only in buffers, ranges and labels.
    fn check_same<B>(&self, set: &Set<'_, B>) -> Result<(), Error> {
        if set.rows.len() != self.rows.len() {
            return Err(Error::RebindCount { given: set.rows.len(), needed: self.rows.len() });
        }
        if !set.rows.is_empty() {
            // Without a part, a gradient is in part 0, but a plan without parts has no part 0 to encode.
            same(0, &set.labels, "number of parts", &set.parts, &self.parts)?;
        }
        for (index, (given, needed)) in set.rows.iter().zip(&self.rows).enumerate() {
            same(index, &set.labels, "number of rows", given, needed)?;
        }
        for (index, (given, needed)) in set.columns.iter().zip(&self.columns).enumerate() {
            same(index, &set.labels, "number of columns", given, needed)?;
        }
        for (given, needed) in spans_of(set).zip(&self.spans) {
            let (Some(given), Some(needed)) = (given, needed) else {
                // An unmeasured gradient may have a parameter or not.
                continue;
            };
            let at = given.gradient;
            let labels = &set.labels;
            same(at, labels, "number of elements", &given.len, &needed.len)?;
            same(at, labels, "element type", &given.dtype, &needed.dtype)?;
            same(at, labels, "group", &given.group, &needed.group)?;
            same(at, labels, "part", &given.part, &needed.part)?;
            same(at, labels, "share in the norm", &given.measured, &needed.measured)?;
            same(at, labels, "share in the scaling", &given.scaled, &needed.scaled)?;
            let elements = |span: &Span| span.partials.map(|partials| partials.elements);
            same(at, labels, "length of partials", &elements(&given), &elements(needed))?;
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
