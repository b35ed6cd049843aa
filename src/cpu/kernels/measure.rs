//! The loops that read.

use super::{Isa, Kernel, LANES, dispatch, prefetch_after};
use crate::NormType;
use crate::cpu::element::Element;
use crate::cpu::measured::Measured;

/// What a norm needs to know of `piece`.
pub(in crate::cpu) fn measure<E: Element>(piece: &[E], norm_type: NormType) -> Measured {
    match norm_type {
        NormType::L1 => dispatch(Sum(piece, Magnitudes)),
        NormType::L2 => dispatch(Sum(piece, Squares)),
        NormType::P(p) if p != 0.0 && p.is_finite() => powers(piece, p),
        _ => dispatch(Extremes(piece)),
    }
}

/// How many elements of `piece`, which are fewer than 2³², are of a kind.
pub(in crate::cpu) fn count<E: Element>(piece: &[E]) -> Counts {
    dispatch(Count(piece))
}

/// How many elements are of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::cpu) struct Counts {
    pub(in crate::cpu) non_finite: u64,
    pub(in crate::cpu) zeros: u64,
}

/// Hands every element to `visit`, with the lane that it is in.
#[inline(always)]
fn by_lane<I: Isa, E: Element>(piece: &[E], mut visit: impl FnMut(usize, f32)) {
    let (blocks, rest) = piece.as_chunks::<LANES>();
    for block in blocks {
        prefetch_after(block);
        let wide = E::widen_block::<I>(block);
        wide.into_iter().enumerate().for_each(|(lane, x)| visit(lane, x));
    }
    rest.iter().enumerate().for_each(|(lane, x)| visit(lane, x.widen()));
}

/// The bits of |x|, in the order of the magnitudes.
#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// A sum over functions of the elements, and the largest magnitude. With as many accumulators as there are lanes:
/// enough to hide the latency of an addition, few enough to stay in registers.
struct Sum<'a, E, T>(&'a [E], T);

/// What is summed up.
trait Terms {
    fn add<I: Isa>(sum: f64, x: f32) -> f64;
}

struct Magnitudes;

impl Terms for Magnitudes {
    #[inline(always)]
    fn add<I: Isa>(sum: f64, x: f32) -> f64 {
        sum + f64::from(x).abs()
    }
}

struct Squares;

impl Terms for Squares {
    #[inline(always)]
    fn add<I: Isa>(sum: f64, x: f32) -> f64 {
        I::add_square(sum, x)
    }
}

impl<E: Element, T: Terms> Kernel for Sum<'_, E, T> {
    type Output = Measured;

    #[inline(always)]
    fn run<I: Isa>(self) -> Measured {
        let Self(piece, _) = self;
        let mut sums = [0.0; LANES];
        let mut largest = [0; LANES];
        by_lane::<I, _>(piece, |lane, x| {
            sums[lane] = T::add::<I>(sums[lane], x);
            largest[lane] = largest[lane].max(magnitude(x));
        });
        let largest = largest.into_iter().fold(0, u32::max);
        Measured { sum: sums.iter().sum(), largest, ..Measured::NOTHING }
    }
}

/// The largest and the smallest magnitude.
struct Extremes<'a, E>(&'a [E]);

impl<E: Element> Kernel for Extremes<'_, E> {
    type Output = Measured;

    #[inline(always)]
    fn run<I: Isa>(self) -> Measured {
        let mut largest = [0; LANES];
        let mut smallest = [u32::MAX; LANES];
        by_lane::<I, _>(self.0, |lane, x| {
            largest[lane] = largest[lane].max(magnitude(x));
            smallest[lane] = smallest[lane].min(magnitude(x));
        });
        let (largest, smallest) =
            (largest.into_iter().fold(0, u32::max), smallest.into_iter().fold(u32::MAX, u32::min));
        Measured { largest, smallest, ..Measured::NOTHING }
    }
}

/// The extremes, and the sum of the powers of the ratios to one of them. The second read finds the piece in the cache.
fn powers<E: Element>(piece: &[E], p: f32) -> Measured {
    let extremes = dispatch(Extremes(piece));
    let unit = extremes.unit(p);
    if unit == 0.0 || !unit.is_finite() {
        return extremes;
    }
    let ratio = |x: &E| f64::from(x.widen()).abs() / unit;
    Measured { sum: piece.iter().map(|x| ratio(x).powf(p.into())).sum(), ..extremes }
}

struct Count<'a, E>(&'a [E]);

impl<E: Element> Kernel for Count<'_, E> {
    type Output = Counts;

    #[inline(always)]
    fn run<I: Isa>(self) -> Counts {
        let (mut non_finite, mut zeros) = ([0_u32; LANES], [0_u32; LANES]);
        by_lane::<I, _>(self.0, |lane, x| {
            non_finite[lane] += u32::from(magnitude(x) >= f32::INFINITY.to_bits());
            zeros[lane] += u32::from(magnitude(x) == 0);
        });
        let total = |counts: [u32; LANES]| counts.into_iter().map(u64::from).sum();
        Counts { non_finite: total(non_finite), zeros: total(zeros) }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::tests::{SPECIAL, numbers, on_every_instruction_set};
    use super::*;
    use crate::reference;

    const NORM_TYPES: [NormType; 7] = [
        NormType::L1,
        NormType::L2,
        NormType::Inf,
        NormType::P(3.0),
        NormType::P(0.5),
        NormType::P(-1.0),
        NormType::P(f32::NEG_INFINITY),
    ];

    #[test]
    fn measures_every_length() {
        let numbers = numbers(5 * LANES);
        for (len, norm_type) in
            (0..=numbers.len()).flat_map(|len| NORM_TYPES.map(|norm_type| (len, norm_type)))
        {
            let measured = measure(&numbers[..len], norm_type);
            let (norm, expected) = (measured.norm(norm_type), reference::norm(&[&numbers[..len]], norm_type));
            assert!(
                (norm - expected).abs() <= 1e-13 * expected,
                "{len} {norm_type:?}: {norm} but {expected}"
            );
            assert_eq!(
                measured.largest,
                reference::max_magnitude(&[&numbers[..len]]).to_bits(),
                "{len} elements"
            );
        }
    }

    #[test]
    fn sees_one_element_wherever_it_is() {
        let mut piece = [0.0; 3 * LANES + 5];
        for i in 0..piece.len() {
            piece[i] = -3.0;
            assert!(
                NORM_TYPES[..5].iter().all(|&norm_type| measure(&piece, norm_type).norm(norm_type) == 3.0),
                "{i}"
            );
            assert_eq!(count(&piece), Counts { zeros: piece.len() as u64 - 1, non_finite: 0 }, "at {i}");
            piece[i] = 0.0;
        }
    }

    #[test]
    fn sees_the_smallest_wherever_it_is() {
        let mut piece = [-7.0; 3 * LANES + 5];
        for i in 0..piece.len() {
            piece[i] = -3.0;
            assert_eq!(measure(&piece, NormType::P(f32::NEG_INFINITY)).smallest, 3.0_f32.to_bits(), "at {i}");
            piece[i] = -7.0;
        }
    }

    #[test]
    fn ranks_nan_above_infinity_above_numbers() {
        let rank = |x: f32| measure(&[f32::MAX, x, -f32::MAX], NormType::L2).largest;
        assert_eq!(rank(f32::NEG_INFINITY), f32::INFINITY.to_bits());
        assert!(rank(-f32::NAN) > f32::INFINITY.to_bits());
        assert_eq!(rank(1.0), f32::MAX.to_bits());
    }

    #[test]
    fn counts_what_is_not_finite() {
        let special: Vec<f32> = SPECIAL.into_iter().chain([f32::NAN]).cycle().take(9 * 7).collect();
        assert_eq!(count(&special), Counts { non_finite: 3 * 7, zeros: 2 * 7 });
    }

    #[test]
    fn avx2_gives_the_bits_of_the_baseline() {
        fn agree<K: Kernel<Output: PartialEq>>(kernel: impl Fn() -> K) -> bool {
            let outputs = on_every_instruction_set(kernel);
            outputs.iter().all(|output| *output == outputs[0])
        }
        fn check<E: Element>(numbers: &[E]) {
            for len in [0, 1, LANES - 1, LANES, LANES + 1, 257, 4099, numbers.len()] {
                let numbers = &numbers[..len];
                assert!(agree(|| Sum(numbers, Squares)), "squares {len}");
                assert!(agree(|| Sum(numbers, Magnitudes)), "magnitudes {len}");
                assert!(agree(|| Extremes(numbers)), "extremes {len}");
                assert!(agree(|| Count(numbers)), "counts {len}");
            }
        }
        let numbers: Vec<f32> = numbers(4099).into_iter().chain(SPECIAL).collect();
        check(&numbers);
        check(&numbers.iter().map(|&x| f16::from_f32(x / 1e10)).collect::<Vec<_>>());
        check(&numbers.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
    }

    #[test]
    fn narrow_elements_are_measured_as_the_f32_that_they_are() {
        let narrow: Vec<f16> = numbers(4099).iter().map(|&x| f16::from_f32(x / 1e10)).collect();
        let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
        for (len, norm_type) in [0, 1, 15, 16, 17, 4099].iter().flat_map(|len| NORM_TYPES.map(|n| (*len, n)))
        {
            assert_eq!(
                measure(&narrow[..len], norm_type),
                measure(&wide[..len], norm_type),
                "{len} {norm_type:?}"
            );
        }
    }
}
