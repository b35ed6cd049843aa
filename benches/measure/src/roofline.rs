//! Rooflines: the time to move a set's bytes, with negligible arithmetic.

pub(crate) mod cpu;
pub mod gpu;

/// A pass that only moves the number of bytes of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roofline {
    /// Reads every byte.
    Read,
    /// Reads every byte and writes it back.
    InPlace,
    /// Copies every byte to other memory.
    Copy,
}

impl Roofline {
    /// All rooflines.
    pub const ALL: [Self; 3] = [Self::Read, Self::InPlace, Self::Copy];
}
