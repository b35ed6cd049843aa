//! Element types: conversions to and from f32, bit patterns and clamping.
//!
//! All operations are branch-free, so that loops over them vectorise and run ten times faster than scalar loops.

use std::fmt::Debug;
use std::ops::{BitOr, BitXor};

use half::{bf16, f16};

/// The type of a gradient's elements.
pub(super) trait Element: Copy + Send + Sync {
    /// The unsigned integer of the same width. Loops without wider types process the most elements per instruction.
    type Bits: Copy + Debug + Default + PartialEq + BitOr<Output = Self::Bits> + BitXor<Output = Self::Bits>;

    /// The largest finite value.
    const MAX: f32;

    /// Converts to f32. Exact for every element, including subnormals, infinities and NaN.
    fn widen(self) -> f32;

    /// Rounds `x` to the nearest element, ties to even. Values out of range become infinite; NaN stays NaN.
    fn narrow(x: f32) -> Self;

    /// Returns the bit pattern.
    fn bits(self) -> Self::Bits;

    /// Returns the nearest element in `[low, high]`. NaN stays NaN, and a zero within the range keeps its sign.
    fn clamped(self, low: Self, high: Self) -> Self;

    /// Rounds the bound of a clamp to an element. A finite bound stays finite.
    fn bound(x: f32) -> Self {
        Self::narrow(if x.is_finite() { x.clamp(-Self::MAX, Self::MAX) } else { x })
    }
}

impl Element for f32 {
    type Bits = u32;

    const MAX: f32 = Self::MAX;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits()
    }

    /// Each line compiles to one instruction. `f32::clamp` could change the sign of a zero.
    #[inline(always)]
    fn clamped(self, low: Self, high: Self) -> Self {
        let raised = if self < low { low } else { self };
        if raised > high { high } else { raised }
    }
}

impl Element for f16 {
    type Bits = u16;

    const MAX: f32 = 65504.0;

    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7fff);
        // The exponent bias is 15 in f16 and 127 in f32. Infinities and subnormals are handled below. Subnormals are
        // multiples of 2⁻²⁴, the unit in the last place of 0.5.
        let normal = (magnitude << 13) + ((127 - 15) << 23);
        let subnormal = (f32::from_bits(0.5_f32.to_bits() + magnitude) - 0.5).to_bits();
        let infinite = normal | 0x7f80_0000;
        let small = select(magnitude < 0x0400, subnormal, normal);
        f32::from_bits(sign | select(magnitude >= 0x7c00, infinite, small))
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the result fits in 16 bits")]
    fn narrow(x: f32) -> Self {
        let (sign, magnitude) = (x.to_bits() >> 16 & 0x8000, x.to_bits() & 0x7fff_ffff);
        let normal = (round_off::<13>(magnitude)).wrapping_sub((127 - 15) << 10);
        // Adding 0.5 rounds to a multiple of 2⁻²⁴. The difference of the bit patterns is that multiple.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
        let small = select(magnitude < 0x3880_0000, subnormal, normal);
        // 65520 is halfway between 65504, the largest finite f16, and the next multiple of its spacing.
        let finite = select(magnitude >= 65520.0_f32.to_bits(), 0x7c00, small);
        let nan = 0x7e00 | magnitude >> 13 & 0x03ff;
        Self::from_bits((sign | select(magnitude > 0x7f80_0000, nan, finite)) as u16)
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bits()
    }

    #[inline(always)]
    fn clamped(self, low: Self, high: Self) -> Self {
        Self::from_bits(clamp_u16(self.to_bits(), low.to_bits(), high.to_bits(), 0x7c00))
    }
}

impl Element for bf16 {
    type Bits = u16;

    const MAX: f32 = f32::from_bits(0x7f7f_0000);

    /// bf16 is the upper half of an f32.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the result fits in 16 bits")]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        // The payload of a NaN may be in the lower half only; setting the quiet bit keeps it a NaN.
        let nan = bits >> 16 | 0x0040;
        Self::from_bits(select(x.is_nan(), nan, round_off::<16>(bits)) as u16)
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bits()
    }

    #[inline(always)]
    fn clamped(self, low: Self, high: Self) -> Self {
        Self::from_bits(clamp_u16(self.to_bits(), low.to_bits(), high.to_bits(), 0x7f80))
    }
}

/// Clamps a 16-bit element, given as bits, to `[low, high]`. `infinity` is the bit pattern of infinity. Integer
/// comparisons process twice as many elements per instruction as f32 comparisons.
#[inline(always)]
const fn clamp_u16(bits: u16, low: u16, high: u16, infinity: u16) -> u16 {
    let key = ordered_key(bits);
    let raised = select_u16(key < ordered_key(low), low, bits);
    let clamped = select_u16(key > ordered_key(high), high, raised);
    select_u16(bits & 0x7fff > infinity, bits, clamped)
}

/// Maps the bits of a 16-bit element to an integer of the same order. Both zeros map to 0.
#[inline(always)]
const fn ordered_key(bits: u16) -> i16 {
    let magnitude = (bits & 0x7fff).cast_signed();
    // 0 or -1; `(x ^ -1) - -1` is `-x`.
    let sign = bits.cast_signed() >> 15;
    (magnitude ^ sign) - sign
}

/// Selects like [`select`], for 16-bit values.
#[inline(always)]
const fn select_u16(condition: bool, yes: u16, no: u16) -> u16 {
    let mask = (condition as u16).wrapping_neg();
    yes & mask | no & !mask
}

/// Selects one of two values with a mask, because the compiler might turn an `if` into a branch.
#[inline(always)]
const fn select(condition: bool, yes: u32, no: u32) -> u32 {
    let mask = (condition as u32).wrapping_neg();
    yes & mask | no & !mask
}

/// Drops the lower `BITS` bits, rounding to nearest even. A carry correctly increments the exponent.
#[inline(always)]
const fn round_off<const BITS: u32>(bits: u32) -> u32 {
    let odd = bits >> BITS & 1;
    bits.wrapping_add((1 << (BITS - 1)) - 1 + odd) >> BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists every finite non-negative element in order, with its value from the definition of the format.
    fn numbers<E: Element<Bits = u16>>(
        from_bits: fn(u16) -> E,
        significand_bits: i32,
        bias: i32,
    ) -> Vec<(f64, E)> {
        let value = |bits: u16| {
            let significand =
                f64::from(bits & ((1 << significand_bits) - 1)) / f64::from(significand_bits).exp2();
            match i32::from(bits >> significand_bits) {
                0 => significand * f64::from(1 - bias).exp2(),
                exponent => (1.0 + significand) * f64::from(exponent - bias).exp2(),
            }
        };
        let infinity = E::narrow(f32::INFINITY).bits();
        (0..infinity).map(|bits| (value(bits), from_bits(bits))).collect()
    }

    fn narrowed<E: Element<Bits = u16>>(x: f32) -> u16 {
        E::narrow(x).bits()
    }

    fn rounds_to_nearest_even<E: Element<Bits = u16>>(numbers: &[(f64, E)]) {
        for (pair, even_is_left) in numbers.windows(2).zip([true, false].into_iter().cycle()) {
            let [(low, left), (high, right)] = pair else { unreachable!() };
            #[expect(
                clippy::cast_possible_truncation,
                reason = "two neighbours and their midpoint are exact in f32"
            )]
            let (low, middle) = (*low as f32, ((low + high) / 2.0) as f32);
            assert_eq!(left.widen(), low);
            assert_eq!(narrowed::<E>(low), left.bits());
            assert_eq!(narrowed::<E>(middle), if even_is_left { left } else { right }.bits(), "{middle:e}");
            assert_eq!(narrowed::<E>(middle.next_down()), left.bits(), "below {middle:e}");
            assert_eq!(narrowed::<E>(middle.next_up()), right.bits(), "above {middle:e}");
            assert_eq!(narrowed::<E>(-middle) & 0x7fff, narrowed::<E>(middle));
        }
    }

    #[test]
    fn f16_values_and_ties_round_to_nearest_even() {
        let numbers = numbers(f16::from_bits, 10, 15);
        assert_eq!(numbers.len(), 0x7c00);
        rounds_to_nearest_even(&numbers);
        assert_eq!(narrowed::<f16>(65519.9), 0x7bff);
        assert_eq!(narrowed::<f16>(65520.0), 0x7c00);
        assert_eq!(narrowed::<f16>(-1e30), 0xfc00);
    }

    #[test]
    fn bf16_values_and_ties_round_to_nearest_even() {
        let numbers = numbers(bf16::from_bits, 7, 127);
        assert_eq!(numbers.len(), 0x7f80);
        rounds_to_nearest_even(&numbers);
        assert_eq!(narrowed::<bf16>(f32::from_bits(0x7f7f_7fff)), 0x7f7f);
        assert_eq!(narrowed::<bf16>(-f32::MAX), 0xff80);
    }

    /// Clamps with f32 comparisons, which define the result.
    fn clamped_as_f32<E: Element>(x: E, low: E, high: E) -> E {
        let value = x.widen();
        let raised = if value < low.widen() { low } else { x };
        if value > high.widen() { high } else { raised }
    }

    #[test]
    fn clamps_every_16_bit_element_like_f32() {
        fn check<E: Element<Bits = u16>>(from_bits: fn(u16) -> E) {
            for (low, high) in [
                (-1.0, 1.0),
                (-0.0, 0.0),
                (0.0, 0.0),
                (-6e-8, 6e-5),
                (2.0, 3.0),
                (-3.0, -2.0),
                (f32::NEG_INFINITY, 0.5),
                (-0.5, f32::INFINITY),
                (f32::INFINITY, f32::INFINITY),
            ] {
                let (low, high) = (E::bound(low), E::bound(high));
                for x in (0..=u16::MAX).map(from_bits) {
                    assert_eq!(x.clamped(low, high).bits(), clamped_as_f32(x, low, high).bits());
                }
            }
        }
        check(f16::from_bits);
        check(bf16::from_bits);
    }

    #[test]
    fn nan_infinity_and_negative_zero_survive_conversion() {
        fn check<E: Element>() {
            // The payload of the second NaN is in the lower half only.
            for nan in [f32::NAN, f32::from_bits(0x7f80_0001), -f32::NAN] {
                assert!(E::narrow(nan).widen().is_nan());
            }
            for infinity in [f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(E::narrow(infinity).widen(), infinity);
            }
            assert_eq!(E::narrow(-0.0).widen().to_bits(), (-0.0_f32).to_bits());
        }
        check::<f32>();
        check::<f16>();
        check::<bf16>();
    }

    #[test]
    fn conversions_agree_with_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (a, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert_eq!((a.widen().is_nan(), b.widen().is_nan()), (a.is_nan(), b.is_nan()), "{bits:#x}");
            if !a.is_nan() {
                assert_eq!(a.widen().to_bits(), a.to_f32().to_bits(), "{bits:#x}");
                assert_eq!(f16::narrow(a.widen()), a);
            }
            if !b.is_nan() {
                assert_eq!(b.widen().to_bits(), b.to_f32().to_bits(), "{bits:#x}");
                assert_eq!(bf16::narrow(b.widen()), b);
            }
        }
    }

    #[test]
    fn a_finite_bound_stays_finite() {
        assert_eq!(
            [70000.0, -1e9, f32::INFINITY].map(|x| f16::bound(x).widen()),
            [65504.0, -65504.0, f32::INFINITY]
        );
        assert_eq!(bf16::bound(f32::MAX).widen(), f32::from_bits(0x7f7f_0000));
        assert_eq!(bf16::bound(65505.0).widen(), 65536.0);
        assert_eq!(f16::bound(1.0 / 3.0).widen(), 0.333_251_95);
        assert_eq!(f32::bound(-f32::MAX), -f32::MAX);
    }
}
