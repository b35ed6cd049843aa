//! Extended floats: the precision of f32 with a wider range. `lib/extended.wgsl` is the counterpart on the device.

/// A number with the precision of f32 and a wider range: `significand · 2^exponent`. The magnitude of the significand is in
/// `[1, 2)`; or the significand is 0, infinite or NaN, and the exponent is unused.
#[derive(Clone, Copy)]
pub(crate) struct Extended {
    pub(crate) significand: f32,
    pub(crate) exponent: i32,
}

impl Extended {
    pub(crate) const ONE: Self = Self { significand: 1.0, exponent: 0 };

    /// Rounds to nearest. A subnormal f64 becomes 0; no number here is that small.
    #[expect(clippy::cast_possible_truncation, reason = "the significand is what is rounded")]
    pub(crate) fn of(number: f64) -> Self {
        const SIGNIFICAND: u64 = (1 << (f64::MANTISSA_DIGITS - 1)) - 1;
        let field = number.to_bits() >> (f64::MANTISSA_DIGITS - 1) & 0x7ff;
        if field == 0 || field == 0x7ff {
            let significand = if field == 0 { 0.0_f32.copysign(number as f32) } else { number as f32 };
            return Self { significand, exponent: 0 };
        }
        let one = 1.0_f64.copysign(number).to_bits();
        let significand = f64::from_bits(number.to_bits() & SIGNIFICAND | one) as f32;
        let exponent = field as i32 - (f64::MAX_EXP - 1);
        // A number just below a power of two rounds up to it.
        if significand.abs() == 2.0 {
            Self { significand: significand / 2.0, exponent: exponent + 1 }
        } else {
            Self { significand, exponent }
        }
    }

    /// Converts to f64. A number below its range becomes one that is 0 after a multiplication by any finite f32 and rounding.
    pub(crate) fn value(self) -> f64 {
        f64::from(self.significand) * power_of_two(self.exponent)
    }

    pub(crate) fn times(self, other: Self) -> Self {
        let product = Self::of(f64::from(self.significand) * f64::from(other.significand));
        product.shifted(self.exponent + other.exponent)
    }

    /// Multiplies by a power of two.
    pub(crate) fn shifted(self, exponent: i32) -> Self {
        let is_number = self.significand != 0.0 && self.significand.is_finite();
        Self { exponent: if is_number { self.exponent + exponent } else { 0 }, ..self }
    }
}

/// Returns `2^exponent`. The exponent is clamped, so that the result and its inverse are normal f64 numbers.
pub(crate) fn power_of_two(exponent: i32) -> f64 {
    f64::from(exponent.clamp(-1022, 1023)).exp2()
}

/// Rounds to the precision of f32, but not to its range.
pub(crate) fn in_f32_precision(number: f64) -> f64 {
    if number.is_finite() { Extended::of(number).value() } else { number }
}

/// Rounds to f32. A number that is too large becomes infinite.
#[expect(clippy::cast_possible_truncation, reason = "the cast rounds as documented")]
pub(crate) fn nearest_f32(number: f64) -> f32 {
    number as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_any_size_is_its_significand_times_a_power_of_two() {
        let parts = |number: f64| {
            let Extended { significand, exponent } = Extended::of(number);
            (significand, exponent)
        };
        assert_eq!([5.0, 1.0, -0.75].map(parts), [(1.25, 2), (1.0, 0), (-1.5, -1)]);
        assert_eq!(parts(f32::from_bits(1).into()), (1.0, -149));
        assert_eq!(parts(2.0 - 1e-12), (1.0, 1), "rounded up to a power of two");
        assert_eq!([0.0, f64::INFINITY, f64::MAX].map(parts), [(0.0, 0), (f32::INFINITY, 0), (1.0, 1024)]);
        assert!(parts(f64::NAN).0.is_nan());
        assert_eq!(Extended::of(-3e-310).value(), 0.0);
    }
}
