//! Rooflines.

pub(crate) mod cpu;
pub mod gpu;

/// What moves as many bytes as a set has, and does nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roofline {
    /// Reads.
    Read,
    /// Reads, and writes back what it has read.
    InPlace,
    /// Reads, and writes elsewhere.
    Copy,
}

impl Roofline {
    /// All rooflines.
    pub const ALL: [Self; 3] = [Self::Read, Self::InPlace, Self::Copy];
}
