//! What the loops need of an element: its exact value as f32, the way back, and its bits.
//!
//! The conversions have no branches, only choices: so a loop over them takes several elements per instruction, which is
//! worth a factor of ten over those that convert, or compare, one element after the other.
#![expect(clippy::inline_always, reason = "it is part of a kernel; see there")]

use std::fmt::Debug;
use std::ops::{BitOr, BitXor};

use half::{bf16, f16};

use super::kernels::{Isa, LANES};

/// The type of a gradient's elements.
pub(super) trait Element: Copy + Send + Sync {
    /// An integer as wide as an element: where a loop has nothing wider, an instruction takes as many as it can.
    type Bits: Copy + Debug + Default + PartialEq + BitOr<Output = Self::Bits> + BitXor<Output = Self::Bits>;

    /// The largest finite element.
    const MAX: f32;

    /// Its value, exactly; subnormals, infinities and NaN included.
    fn widen(self) -> f32;

    /// The element nearest to `x`, ties to even. Too large is infinite, NaN stays NaN.
    fn narrow(x: f32) -> Self;

    /// [`widen`](Self::widen), as an instruction set does it best.
    #[inline(always)]
    fn widen_block<I: Isa>(block: &[Self; LANES]) -> [f32; LANES] {
        // Not `map`, of which the compiler makes one element after the other.
        let mut wide = [0.0; LANES];
        wide.iter_mut().zip(block).for_each(|(wide, x)| *wide = x.widen());
        wide
    }

    /// [`narrow`](Self::narrow), as an instruction set does it best.
    #[inline(always)]
    fn narrow_block<I: Isa>(wide: [f32; LANES]) -> [Self; LANES] {
        let mut block = [Self::narrow(0.0); LANES];
        block.iter_mut().zip(wide).for_each(|(x, wide)| *x = Self::narrow(wide));
        block
    }

    fn bits(self) -> Self::Bits;

    /// The nearest element in `[low, high]`, where a NaN and the sign of a zero stay.
    fn clamped(self, low: Self, high: Self) -> Self;

    /// The bound of a clamp. One that is finite stays finite.
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

    /// Each line is one instruction of the processor. Not `f32::clamp`, which may change the sign of a zero.
    #[inline(always)]
    fn clamped(self, low: Self, high: Self) -> Self {
        let raised = if self < low { low } else { self };
        if raised > high { high } else { raised }
    }
}

impl Element for f16 {
    type Bits = u16;

    #[inline(always)]
    fn widen_block<I: Isa>(block: &[Self; LANES]) -> [f32; LANES] {
        I::widen_f16(block)
    }

    #[inline(always)]
    fn narrow_block<I: Isa>(wide: [f32; LANES]) -> [Self; LANES] {
        I::narrow_to_f16(wide)
    }

    const MAX: f32 = 65504.0;

    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7fff);
        // An exponent of f16 is biased by 15, one of f32 by 127. Those of infinity and of the subnormals mean something
        // else; the latter are multiples of 2⁻²⁴, which the last bit of 0.5 is worth.
        let normal = (magnitude << 13) + ((127 - 15) << 23);
        let subnormal = (f32::from_bits(0.5_f32.to_bits() + magnitude) - 0.5).to_bits();
        let infinite = normal | 0x7f80_0000;
        let small = choose(magnitude < 0x0400, subnormal, normal);
        f32::from_bits(sign | choose(magnitude >= 0x7c00, infinite, small))
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "all that is left is in the lower half")]
    fn narrow(x: f32) -> Self {
        let (sign, magnitude) = (x.to_bits() >> 16 & 0x8000, x.to_bits() & 0x7fff_ffff);
        let normal = (round_off::<13>(magnitude)).wrapping_sub((127 - 15) << 10);
        // The addition rounds to multiples of 2⁻²⁴, and what it adds to the bits is how many there are.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
        let small = choose(magnitude < 0x3880_0000, subnormal, normal);
        // From halfway between 65504 and what would come next.
        let finite = choose(magnitude >= 65520.0_f32.to_bits(), 0x7c00, small);
        let nan = 0x7e00 | magnitude >> 13 & 0x03ff;
        Self::from_bits((sign | choose(magnitude > 0x7f80_0000, nan, finite)) as u16)
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bits()
    }

    #[inline(always)]
    fn clamped(self, low: Self, high: Self) -> Self {
        Self::from_bits(clamped_half(self.to_bits(), low.to_bits(), high.to_bits(), 0x7c00))
    }
}

impl Element for bf16 {
    type Bits = u16;

    #[inline(always)]
    fn widen_block<I: Isa>(block: &[Self; LANES]) -> [f32; LANES] {
        I::widen_bf16(block)
    }

    const MAX: f32 = f32::from_bits(0x7f7f_0000);

    /// The upper half of an f32 it is.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "all that is left is in the lower half")]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        // The payload of a NaN may be in the lower half alone.
        let nan = bits >> 16 | 0x0040;
        Self::from_bits(choose(x.is_nan(), nan, round_off::<16>(bits)) as u16)
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bits()
    }

    #[inline(always)]
    fn clamped(self, low: Self, high: Self) -> Self {
        Self::from_bits(clamped_half(self.to_bits(), low.to_bits(), high.to_bits(), 0x7f80))
    }
}

/// The nearest element of 16 bits in `[low, high]`, as bits, where those of infinity are given. Compared as integers, so
/// that an instruction holds twice as many as it does of f32.
#[inline(always)]
const fn clamped_half(bits: u16, low: u16, high: u16, infinity: u16) -> u16 {
    let key = ordered_half(bits);
    let raised = choose_half(key < ordered_half(low), low, bits);
    let clamped = choose_half(key > ordered_half(high), high, raised);
    choose_half(bits & 0x7fff > infinity, bits, clamped)
}

/// Integers in the order of the elements, both zeros being 0.
#[inline(always)]
const fn ordered_half(bits: u16) -> i16 {
    let magnitude = (bits & 0x7fff).cast_signed();
    // -1 for the negative ones: the complement and one more is the negative.
    let sign = bits.cast_signed() >> 15;
    (magnitude ^ sign) - sign
}

/// [`choose`], of 16 bits.
#[inline(always)]
const fn choose_half(condition: bool, yes: u16, no: u16) -> u16 {
    let mask = (condition as u16).wrapping_neg();
    yes & mask | no & !mask
}

/// One of two, both of which are computed: of an `if` the compiler may make a branch.
#[inline(always)]
const fn choose(condition: bool, yes: u32, no: u32) -> u32 {
    let mask = (condition as u32).wrapping_neg();
    yes & mask | no & !mask
}

/// Without the lower bits, rounded to nearest even. A carry goes on into the exponent, where it belongs.
#[inline(always)]
const fn round_off<const BITS: u32>(bits: u32) -> u32 {
    let odd = bits >> BITS & 1;
    bits.wrapping_add((1 << (BITS - 1)) - 1 + odd) >> BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element that is a number, in order, with its value by the definition of the format.
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
                reason = "two elements and their middle are exact in f32"
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
    fn every_f16_and_every_tie_between_two() {
        let numbers = numbers(f16::from_bits, 10, 15);
        assert_eq!(numbers.len(), 0x7c00);
        rounds_to_nearest_even(&numbers);
        assert_eq!(narrowed::<f16>(65519.9), 0x7bff);
        assert_eq!(narrowed::<f16>(65520.0), 0x7c00);
        assert_eq!(narrowed::<f16>(-1e30), 0xfc00);
    }

    #[test]
    fn every_bf16_and_every_tie_between_two() {
        let numbers = numbers(bf16::from_bits, 7, 127);
        assert_eq!(numbers.len(), 0x7f80);
        rounds_to_nearest_even(&numbers);
        assert_eq!(narrowed::<bf16>(f32::from_bits(0x7f7f_7fff)), 0x7f7f);
        assert_eq!(narrowed::<bf16>(-f32::MAX), 0xff80);
    }

    /// The definition, in f32.
    fn clamped_as_f32<E: Element>(x: E, low: E, high: E) -> E {
        let value = x.widen();
        let raised = if value < low.widen() { low } else { x };
        if value > high.widen() { high } else { raised }
    }

    #[test]
    fn every_narrow_element_goes_to_its_bound() {
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
    fn nan_and_infinity_go_both_ways() {
        fn check<E: Element>() {
            // The payload of the second would be lost by cutting off the lower half.
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
    fn every_element_is_what_half_says_it_is() {
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
