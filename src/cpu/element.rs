//! What the loops need of an element: its exact value as f32, the way back, and its bits.
#![expect(clippy::inline_always, reason = "it is part of a kernel; see there")]

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// How many elements are widened together.
pub(super) const LANES: usize = 16;

/// The type of a gradient's elements. An order of two elements is that of their values, and none where one is NaN.
pub(super) trait Element: Copy + PartialOrd + Send + Sync {
    /// The largest finite element.
    const MAX: f32;

    /// Its value, exactly; subnormals, infinities and NaN included.
    fn widen(self) -> f32;

    /// The element nearest to `x`, ties to even. Too large is infinite, NaN stays NaN.
    fn narrow(x: f32) -> Self;

    fn bits(self) -> u32;

    #[inline(always)]
    fn widen_all(block: &[Self; LANES]) -> [f32; LANES] {
        block.map(Self::widen)
    }

    #[inline(always)]
    fn narrow_all(block: &[f32; LANES]) -> [Self; LANES] {
        block.map(Self::narrow)
    }

    /// The bound of a clamp. One that is finite stays finite.
    fn bound(x: f32) -> Self {
        Self::narrow(if x.is_finite() { x.clamp(-Self::MAX, Self::MAX) } else { x })
    }
}

impl Element for f32 {
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
}

impl Element for f16 {
    const MAX: f32 = 65504.0;

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits().into()
    }

    // The processor's conversions work on several at a time.
    #[inline(always)]
    fn widen_all(block: &[Self; LANES]) -> [f32; LANES] {
        let mut wide = [0.0; LANES];
        block.convert_to_f32_slice(&mut wide);
        wide
    }

    #[inline(always)]
    fn narrow_all(block: &[f32; LANES]) -> [Self; LANES] {
        let mut narrow = [Self::ZERO; LANES];
        narrow.convert_from_f32_slice(block);
        narrow
    }
}

impl Element for bf16 {
    const MAX: f32 = f32::from_bits(0x7f7f_0000);

    /// The upper half of an f32 it is.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element that is a number, in order, with its value by the definition of the format.
    fn numbers<E: Element>(from_bits: fn(u16) -> E, significand_bits: i32, bias: i32) -> Vec<(f64, E)> {
        let value = |bits: u16| {
            let significand =
                f64::from(bits & ((1 << significand_bits) - 1)) / f64::from(significand_bits).exp2();
            match i32::from(bits >> significand_bits) {
                0 => significand * f64::from(1 - bias).exp2(),
                exponent => (1.0 + significand) * f64::from(exponent - bias).exp2(),
            }
        };
        let infinity = u16::try_from(E::narrow(f32::INFINITY).bits()).unwrap();
        (0..infinity).map(|bits| (value(bits), from_bits(bits))).collect()
    }

    /// What `x` is, both alone and in a block.
    fn narrowed<E: Element>(x: f32) -> u32 {
        let together = E::narrow_all(&[x; LANES]).map(E::bits);
        assert_eq!(together, [E::narrow(x).bits(); LANES], "{x:e}");
        together[0]
    }

    fn rounds_to_nearest_even<E: Element>(numbers: &[(f64, E)]) {
        for (pair, even_is_left) in numbers.windows(2).zip([true, false].into_iter().cycle()) {
            let [(low, left), (high, right)] = pair else { unreachable!() };
            #[expect(
                clippy::cast_possible_truncation,
                reason = "two elements and their middle are exact in f32"
            )]
            let (low, middle) = (*low as f32, ((low + high) / 2.0) as f32);
            assert_eq!(left.widen(), low);
            assert_eq!(E::widen_all(&[*left; LANES]), [low; LANES]);
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

    #[test]
    fn nan_and_infinity_go_both_ways() {
        fn check<E: Element>() {
            // The payload of the second would be lost by cutting off the lower half.
            for nan in [f32::NAN, f32::from_bits(0x7f80_0001), -f32::NAN] {
                assert!(E::narrow(nan).widen().is_nan());
                assert!(E::widen_all(&E::narrow_all(&[nan; LANES])).iter().all(|x| x.is_nan()));
            }
            for infinity in [f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(E::narrow(infinity).widen(), infinity);
                assert_eq!(E::widen_all(&E::narrow_all(&[infinity; LANES])), [infinity; LANES]);
            }
            assert_eq!(E::narrow(-0.0).widen().to_bits(), (-0.0_f32).to_bits());
        }
        check::<f32>();
        check::<f16>();
        check::<bf16>();
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
