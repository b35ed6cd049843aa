//! The types that a gradient's elements can have.

use half::{bf16, f16};

/// The type of a gradient's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 single precision, 4 bytes.
    F32,
    /// IEEE 754 half precision, 2 bytes. Above 65504 it overflows to infinity.
    F16,
    /// The upper half of an f32, 2 bytes: its range, with 8 bits of precision.
    BF16,
}

impl DType {
    /// The size of an element, in bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Rounds a number to this type, to nearest even. A finite number stays finite: 1e6 becomes 65504 in f16.
    ///
    /// The bounds of a clip by value are rounded like this, so that a finite bound never makes an element infinite.
    #[must_use]
    pub fn round(self, number: f32) -> f32 {
        let (nearest, most) = match self {
            Self::F32 => (number, f32::MAX),
            Self::F16 => (f16::from_f32(number).to_f32(), f16::MAX.to_f32()),
            Self::BF16 => (bf16::from_f32(number).to_f32(), bf16::MAX.to_f32()),
        };
        if number.is_finite() { nearest.clamp(-most, most) } else { nearest }
    }
}
