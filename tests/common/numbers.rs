//! Elements of gradients: noise, bits, scaling and rounding.

use gradclip::DType;
use half::{bf16, f16};

/// Returns pseudo-random numbers in [-1, 1). The same seed gives the same numbers.
pub(crate) fn noise(seed: u32, len: usize) -> Vec<f32> {
    let number = |index: u64| {
        let mut hash = (u64::from(seed) << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        ((hash ^ hash >> 32) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len as u64).map(number).collect()
}

/// Returns the bits of every element, for comparisons in which NaN equals itself and -0.0 differs from 0.0.
pub(crate) fn bits(gradients: &[Vec<f32>]) -> Vec<Vec<u32>> {
    gradients.iter().map(|gradient| gradient.iter().map(|g| g.to_bits()).collect()).collect()
}

/// Borrows gradients as slices.
pub(crate) fn slices(gradients: &[Vec<f32>]) -> Vec<&[f32]> {
    gradients.iter().map(Vec::as_slice).collect()
}

/// Multiplies every element by a coefficient.
pub(crate) fn scaled(gradients: &[Vec<f32>], coef: f32) -> Vec<Vec<f32>> {
    gradients.iter().map(|gradient| gradient.iter().map(|g| g * coef).collect()).collect()
}

/// Rounds to the nearest number of a type, ties to even. Numbers beyond its range become infinite.
pub(crate) fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}
