//! `Passes`: the dispatches of a plan, in the order in which they run.

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
    /// The dispatches that measure each part; a single part unless gradients are in parts. Empty for a clip by value.
    pub(super) parts: Vec<Vec<D>>,
    /// Whether gradients are in parts.
    pub(super) in_parts: bool,
    /// Whether partials are reset after they have been read.
    pub(super) resets: bool,
    /// The dispatches that make the records; empty for a clip by value.
    pub(super) record: Vec<D>,
    /// The dispatches that write the gradients.
    pub(super) scale: Vec<D>,
    /// The single dispatch of a small clip, which replaces all others.
    pub(super) small: Option<D>,
    pub(super) coefficient_only: bool,
}

impl<D> Passes<D> {
    /// Returns all dispatches of a clip.
    pub fn all(&self) -> impl Iterator<Item = &D> {
        let halves = self.norm().chain(self.second_half()).filter(|_| self.small.is_none());
        self.small.iter().chain(halves)
    }

    /// Returns whether [`all`](Self::all) is faster as two compute passes, [`norm`](Self::norm) and [`scale`](Self::scale).
    ///
    /// Each dispatch of a pass changes the state of a buffer, so that wgpu puts a barrier before it and it starts on an idle GPU.
    /// Between two passes there is one barrier for all.
    #[must_use]
    pub fn wants_two_passes(&self) -> bool {
        self.small.is_none() && self.second_half().len() > 1
    }

    /// Returns the dispatches of the first half: they measure the norm and write the records. None for a clip by value.
    pub fn norm(&self) -> impl Iterator<Item = &D> {
        self.parts.iter().flatten().chain(&self.record)
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
        let dispatches = self.parts.get(part).filter(|_| self.in_parts);
        dispatches.map(Vec::as_slice).ok_or(Error::NoSuchPart { given: part, parts })
    }

    /// Returns the dispatches that make the records from the partials of all parts.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPart`] if the plan does not reset its partials: without parts and without partials of other kernels.
    pub fn record(&self) -> Result<&[D], Error> {
        if self.resets { Ok(&self.record) } else { Err(Error::NoSuchPart { given: 0, parts: 0 }) }
    }

    /// Returns the dispatches that scale or clamp the gradients, also those of a clip that computes only the coefficient.
    #[must_use]
    pub fn scale(&self) -> &[D] {
        &self.scale
    }

    /// Returns whether partials are reset after they have been read.
    pub(crate) const fn resets(&self) -> bool {
        self.resets
    }

    fn second_half(&self) -> &[D] {
        if self.coefficient_only { &[] } else { &self.scale }
    }

    /// Converts each dispatch.
    ///
    /// # Errors
    ///
    /// The first error of `convert`.
    pub fn try_map<T, E>(&self, mut convert: impl FnMut(&D) -> Result<T, E>) -> Result<Passes<T>, E> {
        let mut convert_all = |dispatches: &[D]| dispatches.iter().map(&mut convert).collect();
        Ok(Passes {
            parts: self.parts.iter().map(|part| convert_all(part)).collect::<Result<_, E>>()?,
            in_parts: self.in_parts,
            resets: self.resets,
            record: convert_all(&self.record)?,
            scale: convert_all(&self.scale)?,
            small: self.small.as_ref().map(&mut convert).transpose()?,
            coefficient_only: self.coefficient_only,
        })
    }
}
