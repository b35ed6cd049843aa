//! `Passes`: the dispatches of a plan, in the order in which they run.

use std::ops::Range;

use crate::Error;
use crate::kernels::Kernel;

/// One dispatch of a kernel.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// The kernel.
    pub kernel: Kernel,
    /// What it binds, in the order of [`Kernel::bindings`]; for an array, all its [elements](crate::kernels::Buffer::elements).
    pub bindings: Vec<BoundRange>,
    /// The number of workgroups in x and y.
    pub grid: [u32; 2],
}

/// A range of a buffer that a dispatch binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundRange {
    /// The buffer.
    pub source: Source,
    /// The start in bytes: a multiple of [`Limits::alignment`](super::Limits::alignment).
    pub offset: u64,
    /// The length in bytes.
    pub size: u64,
}

/// A buffer that a dispatch binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An index into [`Plan::buffers`](super::Plan::buffers).
    Own(usize),
    /// An index into the distinct buffers of the gradients.
    Given(usize),
    /// A buffer of the host that no kernel writes, of [`Limits::filler_bytes`](super::Limits::filler_bytes): it fills the slots that a
    /// dispatch does not use.
    Filler,
}

/// The dispatches of a plan. A host converts them to its own type; see [`try_map`](Self::try_map).
#[derive(Clone, Debug)]
pub struct Passes<D = Dispatch> {
    /// All dispatches. The last may be the single dispatch of a small clip, which replaces all others.
    pub(super) dispatches: Vec<D>,
    /// The dispatches that measure each part come first. There is a single part unless gradients are in parts, and none for a clip
    /// by value.
    pub(super) parts: Vec<Range<usize>>,
    /// The dispatches that make the records follow; empty for a clip by value.
    pub(super) record: Range<usize>,
    /// The dispatches that write the gradients come next.
    pub(super) scale: Range<usize>,
    /// Whether gradients are in parts.
    pub(super) in_parts: bool,
    /// Whether partials are reset after they have been read.
    pub(super) resets: bool,
    pub(super) coefficient_only: bool,
}

impl Passes {
    /// Puts the dispatches in their order.
    pub(super) fn new(
        parts: Vec<Vec<Dispatch>>,
        record: Vec<Dispatch>,
        scale: Vec<Dispatch>,
        small: Option<Dispatch>,
    ) -> Self {
        let mut dispatches = Vec::new();
        let mut append = |mut section: Vec<Dispatch>| {
            let start = dispatches.len();
            dispatches.append(&mut section);
            start..dispatches.len()
        };
        let parts = parts.into_iter().map(&mut append).collect();
        let (record, scale) = (append(record), append(scale));
        dispatches.extend(small);
        Self { dispatches, parts, record, scale, in_parts: false, resets: false, coefficient_only: false }
    }
}

impl<D> Passes<D> {
    /// Returns all dispatches of a clip.
    pub fn all(&self) -> impl Iterator<Item = &D> {
        let all = if self.has_small() {
            self.scale.end..self.dispatches.len()
        } else if self.coefficient_only {
            0..self.record.end
        } else {
            0..self.scale.end
        };
        self.dispatches[all].iter()
    }

    /// Returns whether [`all`](Self::all) is faster as two compute passes, [`norm`](Self::norm) and [`scale`](Self::scale).
    ///
    /// Each dispatch of a pass changes the state of a buffer, so that wgpu puts a barrier before it and it starts on an idle GPU.
    /// Between two passes there is one barrier for all.
    #[must_use]
    pub fn wants_two_passes(&self) -> bool {
        !self.has_small() && !self.coefficient_only && self.scale.len() > 1
    }

    /// Returns the dispatches of the first half: they measure the norm and write the records. None for a clip by value.
    pub fn norm(&self) -> impl Iterator<Item = &D> {
        self.dispatches[..self.record.end].iter()
    }

    /// Returns the number of parts in which the gradients are measured, or 0 if no gradient is in a part.
    #[must_use]
    pub fn parts(&self) -> usize {
        if self.in_parts { self.parts.len() } else { 0 }
    }

    /// Returns the dispatches that measure a part.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPart`].
    pub fn part(&self, part: usize) -> Result<&[D], Error> {
        let parts = self.parts();
        if part < parts {
            Ok(&self.dispatches[self.parts[part].clone()])
        } else {
            Err(Error::NoSuchPart { given: part, parts })
        }
    }

    /// Returns the dispatches that make the records from the partials of all parts.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPart`] if the plan does not reset its partials: without parts and without partials of other kernels.
    pub fn record(&self) -> Result<&[D], Error> {
        let record = &self.dispatches[self.record.clone()];
        if self.resets { Ok(record) } else { Err(Error::NoSuchPart { given: 0, parts: 0 }) }
    }

    /// Returns the dispatches that scale or clamp the gradients, also those of a clip that computes only the coefficient.
    #[must_use]
    pub fn scale(&self) -> &[D] {
        &self.dispatches[self.scale.clone()]
    }

    /// Returns whether partials are reset after they have been read.
    pub(crate) const fn resets(&self) -> bool {
        self.resets
    }

    fn has_small(&self) -> bool {
        self.dispatches.len() > self.scale.end
    }

    /// Converts each dispatch.
    ///
    /// # Errors
    ///
    /// The first error of `convert`.
    pub fn try_map<T, E>(&self, convert: impl FnMut(&D) -> Result<T, E>) -> Result<Passes<T>, E> {
        Ok(Passes {
            dispatches: self.dispatches.iter().map(convert).collect::<Result<_, E>>()?,
            parts: self.parts.clone(),
            record: self.record.clone(),
            scale: self.scale.clone(),
            in_parts: self.in_parts,
            resets: self.resets,
            coefficient_only: self.coefficient_only,
        })
    }
}
