//! `DType`: the type of a gradient's elements.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use crate::Error;

/// The type of a gradient's elements. As text: `f32`, `f16` or `bf16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 single precision, 4 bytes.
    #[default]
    F32,
    /// IEEE 754 half precision, 2 bytes. The largest finite value is 65504.
    F16,
    /// bfloat16, the upper half of an f32, 2 bytes. It has the range of f32 and 8 bits of precision.
    BF16,
}

impl DType {
    /// Returns the size of an element, in bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Rounds a number to this type, to nearest even. A finite number stays finite: 1e6 becomes 65504 in f16.
    ///
    /// The bounds of a clip by value are rounded this way, so that a finite bound never makes an element infinite.
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

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        })
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.to_ascii_lowercase().as_str() {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            _ => Err(Error::parse("dtype", text, "f32, f16 or bf16")),
        }
    }
}
