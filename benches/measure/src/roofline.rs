//! Rooflines: the time that moving a set's bytes takes, without any arithmetic worth counting.

pub(crate) mod cpu;
pub mod gpu;

/// A pass over as many bytes as a set has that only moves data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roofline {
    /// Reads every byte.
    Read,
    /// Reads every byte and writes it back.
    InPlace,
    /// Copies every byte to another place.
    Copy,
}

impl Roofline {
    /// All rooflines.
    pub const ALL: [Self; 3] = [Self::Read, Self::InPlace, Self::Copy];
}
