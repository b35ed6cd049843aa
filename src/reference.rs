//! The reference implementation: every operation in plain, sequential f64.
//!
//! The CPU and the GPU path are tested against this module, which shares no code with either. It has one accumulator,
//! and processes one element at a time. For `n` elements the relative error of its norm is at most `n · 2⁻⁵⁴`, and far
//! smaller in practice. No finite f32 overflows or underflows when squared in f64.
//!
//! ```
//! use gradclip::reference;
//!
//! let gradients: [&[f32]; 2] = [&[3.0, 0.0], &[4.0]];
//! let norm = reference::total_norm(&gradients);
//! let coef = reference::clip_coef(norm, 1.0);
//! assert_eq!(norm, 5.0);
//! assert_eq!(reference::scale(4.0, coef), 0.799_999_84);
//! ```

use crate::NormType;

/// Computes the global L2 norm, `sqrt(Σ g²)`. It is NaN if an element is NaN, else infinite if an element is infinite,
/// and 0 without elements.
#[must_use]
pub fn total_norm(gradients: &[&[f32]]) -> f64 {
    let mut sum = 0.0;
    for &x in gradients.iter().copied().flatten() {
        sum += f64::from(x) * f64::from(x);
    }
    sum.sqrt()
}

/// Computes the global norm of any type, like `torch.nn.utils.clip_grad_norm_`: the norm of the norms of the gradients.
/// It is NaN if an element is NaN and p is not 0, and 0 without elements.
#[must_use]
pub fn norm(gradients: &[&[f32]], norm_type: NormType) -> f64 {
    let p = f64::from(norm_type.p());
    let mut norms = Vec::new();
    for gradient in gradients {
        // An empty gradient is left out: a norm of 0 would be the smallest, and determine the result for a negative p.
        if !gradient.is_empty() {
            let magnitudes: Vec<f64> = gradient.iter().map(|&x| f64::from(x).abs()).collect();
            norms.push(vector_norm(&magnitudes, p));
        }
    }
    vector_norm(&norms, p)
}

/// Computes `(Σ x^p)^(1/p)` of non-negative numbers, or its limit for an infinite p. For p = 0, counts the non-zero
/// numbers.
fn vector_norm(numbers: &[f64], p: f64) -> f64 {
    let largest = numbers.iter().copied().fold(0.0, f64::max);
    let smallest = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    if p == 0.0 {
        return numbers.iter().filter(|&&x| x != 0.0).count() as f64;
    }
    if numbers.iter().any(|x| x.is_nan()) {
        return f64::NAN;
    }
    if numbers.is_empty() {
        return 0.0;
    }
    // Powers could overflow or underflow in f64. Powers of the ratios to the dominant number do not.
    let scale = if p > 0.0 { largest } else { smallest };
    if p.is_infinite() || scale == 0.0 || scale == f64::INFINITY {
        return scale;
    }
    let mut sum = 0.0;
    for x in numbers {
        sum += (x / scale).powf(p);
    }
    scale * sum.powf(1.0 / p)
}

/// Computes the largest `|g|` of all elements: the infinity norm. It is NaN if an element is NaN, and 0 without
/// elements.
#[must_use]
pub fn max_magnitude(gradients: &[&[f32]]) -> f32 {
    let mut largest = 0.0;
    for &x in gradients.iter().copied().flatten() {
        if x.is_nan() {
            return f32::NAN;
        }
        if x.abs() > largest {
            largest = x.abs();
        }
    }
    largest
}

/// Computes the clip coefficient, `min(max_norm / (total_norm + 1e-6), 1)`, like `torch.nn.utils.clip_grad_norm_`. NaN
/// stays NaN.
#[must_use]
pub fn clip_coef(total_norm: f64, max_norm: f64) -> f64 {
    clip_coef_with(total_norm, max_norm, 1e-6)
}

/// Computes [`clip_coef`] with `epsilon` in place of 1e-6. If both the norm and `epsilon` are 0, the coefficient is 1.
#[must_use]
pub fn clip_coef_with(total_norm: f64, max_norm: f64, epsilon: f64) -> f64 {
    if total_norm + epsilon == 0.0 {
        return 1.0;
    }
    let coef = max_norm / (total_norm + epsilon);
    if coef > 1.0 { 1.0 } else { coef }
}

/// Scales one element: `x · coef`, rounded once to the nearest f32.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is intended")]
pub fn scale(x: f32, coef: f64) -> f32 {
    (f64::from(x) * coef) as f32
}

/// Clamps one element to `[low, high]`. NaN stays NaN. -0.0 stays -0.0 if the range contains 0, even if a bound is
/// +0.0.
#[must_use]
pub fn clamp(x: f32, low: f32, high: f32) -> f32 {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norm_of_a_3_4_5_triangle() {
        assert_eq!(total_norm(&[&[3.0], &[], &[0.0, -4.0]]), 5.0);
        assert_eq!(total_norm(&[]), 0.0);
        assert_eq!(max_magnitude(&[&[3.0], &[], &[0.0, -4.0]]), 4.0);
        assert_eq!(max_magnitude(&[]), 0.0);
    }

    #[test]
    fn nan_takes_precedence_over_infinity() {
        for order in [[f32::NAN, f32::INFINITY], [f32::INFINITY, f32::NAN]] {
            assert!(total_norm(&[&order]).is_nan());
            assert!(max_magnitude(&[&order]).is_nan());
        }
        assert_eq!(total_norm(&[&[1.0, f32::NEG_INFINITY]]), f64::INFINITY);
    }

    #[test]
    fn every_norm_type() {
        let norm = |p| norm(&[&[3.0], &[], &[-4.0, 12.0]], NormType::P(p));
        assert_eq!([1.0, 2.0, 0.0].map(norm), [19.0, 13.0, 2.0]);
        assert_eq!([f32::INFINITY, f32::NEG_INFINITY].map(norm), [12.0, 3.0]);
        // 1 / (1/3 + 1/4 + 1/12), and cbrt(27 + 64 + 1728).
        assert!((norm(-1.0) - 1.5).abs() < 1e-15);
        assert!((norm(3.0) - 1819.0_f64.cbrt()).abs() < 1e-14);
        assert_eq!(super::norm(&[&[], &[]], NormType::P(-1.0)), 0.0);
        assert_eq!(super::norm(&[&[5.0], &[0.0]], NormType::P(-1.0)), 0.0);
        assert_eq!(
            super::norm(&[&[1e30; 4]], NormType::P(12.0)),
            f64::from(1e30_f32) * 4.0_f64.powf(1.0 / 12.0)
        );
        assert_eq!(super::norm(&[&[0.0, f32::NAN], &[-0.0]], NormType::P(0.0)), 1.0);
        assert!(super::norm(&[&[0.0, f32::NAN]], NormType::P(-2.0)).is_nan());
        assert_eq!(super::norm(&[&[f32::INFINITY, 2.0]], NormType::P(-1.0)), 2.0);
        assert_eq!(super::norm(&[&[f32::INFINITY], &[2.0]], NormType::P(0.5)), f64::INFINITY);
    }

    #[test]
    fn clip_coefficients() {
        assert_eq!(clip_coef(4.0, 2.0), 2.0 / 4.000_001);
        assert_eq!(clip_coef(1.0, 2.0), 1.0);
        assert_eq!(clip_coef(f64::INFINITY, 2.0), 0.0);
        assert!(clip_coef(f64::NAN, 2.0).is_nan());
        assert_eq!([0.0, 1.0].map(|epsilon| clip_coef_with(4.0, 2.0, epsilon)), [0.5, 0.4]);
        assert_eq!(clip_coef_with(0.0, 0.0, 0.0), 1.0);
    }

    #[test]
    fn clamp_keeps_nan_and_the_sign_of_zero() {
        assert!(clamp(f32::NAN, -1.0, 1.0).is_nan());
        assert_eq!(clamp(-0.0, 0.0, 1.0).to_bits(), (-0.0_f32).to_bits());
        assert_eq!(clamp(f32::INFINITY, -1.0, 2.0), 2.0);
        assert_eq!(clamp(f32::NEG_INFINITY, -1.0, 2.0), -1.0);
    }
}
