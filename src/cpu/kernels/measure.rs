//! The loops that read.

use std::marker::PhantomData;
use std::mem;

use super::walk::{GRAIN, Stream, Walk};
use super::{Isa, Kernel, LANES, dispatch};
use crate::NormType;
use crate::cpu::element::Element;
use crate::cpu::gradient::Elements;
use crate::cpu::measured::Measured;

/// Before the first piece of a stream.
const NOTHING: Elements<'_> = Elements::F32(&[]);

/// What a norm needs to know of each of the pieces.
pub(in crate::cpu) fn measure(pieces: &[Elements<'_>], norm_type: NormType) -> Vec<Measured> {
    match norm_type {
        NormType::L1 => fold::<Sum<Magnitudes>>(pieces),
        NormType::L2 => fold::<Sum<Squares>>(pieces),
        NormType::P(p) if p != 0.0 && p.is_finite() => pieces.iter().map(|&piece| powers(piece, p)).collect(),
        _ => fold::<Extremes>(pieces),
    }
}

/// How many elements of each of the pieces, which have fewer than 2³², are of a kind.
pub(in crate::cpu) fn count(pieces: &[Elements<'_>]) -> Vec<Counts> {
    fold::<Count>(pieces)
}

/// How many elements are of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::cpu) struct Counts {
    pub(in crate::cpu) non_finite: u64,
    pub(in crate::cpu) zeros: u64,
}

/// What is found in a piece while it is read, each lane by itself.
trait Fold: Copy {
    type Output: Copy;

    /// Before the first element.
    const START: Self;

    /// Adds an element to its lane.
    fn add<I: Isa>(&mut self, lane: usize, x: f32);

    /// After the last element.
    fn finish(self) -> Self::Output;
}

fn fold<F: Fold>(pieces: &[Elements<'_>]) -> Vec<F::Output> {
    dispatch(Folding { pieces, walk: Walk::here(), fold: PhantomData::<F> })
}

/// Folds each of the pieces.
struct Folding<'a, F> {
    pieces: &'a [Elements<'a>],
    walk: Walk,
    fold: PhantomData<F>,
}

impl<F: Fold> Kernel for Folding<'_, F> {
    type Output = Vec<F::Output>;

    #[inline(always)]
    fn run<I: Isa>(self) -> Vec<F::Output> {
        let Self { pieces, walk, .. } = self;
        let mut found = vec![F::START.finish(); pieces.len()];
        let share = walk.share(pieces.len());
        let shares = pieces.chunks(share).zip(found.chunks_mut(share));
        let mut streams: Vec<Reading<'_, F>> =
            shares.map(|(pieces, found)| Reading { rest: NOTHING, fold: F::START, pieces, found }).collect();
        walk.through::<I>(&mut streams);
        found
    }
}

/// A stream that is only read.
struct Reading<'a, F: Fold> {
    /// What is left of the current piece.
    rest: Elements<'a>,
    /// What was found in the current piece so far.
    fold: F,
    /// The pieces after it.
    pieces: &'a [Elements<'a>],
    /// Where to store what is found in it, and in those after it.
    found: &'a mut [F::Output],
}

impl<F: Fold> Stream for Reading<'_, F> {
    #[inline(always)]
    fn step<I: Isa>(&mut self, walk: Walk) -> bool {
        if self.rest.len() == 0 {
            let Some(piece) = self.pieces.split_off_first() else { return false };
            self.rest = *piece;
        }
        match self.rest.split_off_front(Walk::step(self.rest.element_size())) {
            Elements::F32(step) => I::run(Adding(step, &mut self.fold, walk)),
            Elements::F16(step) => I::run(Adding(step, &mut self.fold, walk)),
            Elements::Bf16(step) => I::run(Adding(step, &mut self.fold, walk)),
        }
        if self.rest.len() == 0
            && let Some(found) = self.found.split_off_first_mut()
        {
            *found = mem::replace(&mut self.fold, F::START).finish();
        }
        true
    }
}

/// Adds some elements to a fold.
struct Adding<'a, E, F>(&'a [E], &'a mut F, Walk);

impl<E: Element, F: Fold> Kernel for Adding<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self(elements, fold, walk) = self;
        // Almost every step of f32. Those of 16 bits wait for arithmetic, and gain nothing by being unrolled.
        if let Ok(grain) = <&[E; GRAIN]>::try_from(elements) {
            add_blocks::<I, E, F>(grain.as_chunks().0, fold, walk);
        } else {
            let (blocks, rest) = elements.as_chunks();
            add_blocks::<I, E, F>(blocks, fold, walk);
            rest.iter().enumerate().for_each(|(lane, x)| fold.add::<I>(lane, x.widen()));
        }
    }
}

#[inline(always)]
fn add_blocks<I: Isa, E: Element, F: Fold>(blocks: &[[E; LANES]], fold: &mut F, walk: Walk) {
    // A copy, which stays in registers.
    let mut lanes = *fold;
    for block in blocks {
        walk.prefetch_after(block);
        let wide = E::widen_block::<I>(block);
        wide.into_iter().enumerate().for_each(|(lane, x)| lanes.add::<I>(lane, x));
    }
    *fold = lanes;
}

/// The bits of |x|, in the order of the magnitudes.
#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// A sum over functions of the elements, and the largest magnitude. With as many accumulators as there are lanes:
/// enough to hide the latency of an addition, few enough to stay in registers.
#[derive(Clone, Copy)]
struct Sum<T> {
    sums: [f64; LANES],
    largest: [u32; LANES],
    terms: PhantomData<T>,
}

/// What is summed up.
trait Terms: Copy {
    fn add<I: Isa>(sum: f64, x: f32) -> f64;
}

#[derive(Clone, Copy)]
struct Magnitudes;

impl Terms for Magnitudes {
    #[inline(always)]
    fn add<I: Isa>(sum: f64, x: f32) -> f64 {
        sum + f64::from(x).abs()
    }
}

#[derive(Clone, Copy)]
struct Squares;

impl Terms for Squares {
    #[inline(always)]
    fn add<I: Isa>(sum: f64, x: f32) -> f64 {
        I::add_square(sum, x)
    }
}

impl<T: Terms> Fold for Sum<T> {
    type Output = Measured;

    const START: Self = Self { sums: [0.0; LANES], largest: [0; LANES], terms: PhantomData };

    #[inline(always)]
    fn add<I: Isa>(&mut self, lane: usize, x: f32) {
        self.sums[lane] = T::add::<I>(self.sums[lane], x);
        self.largest[lane] = self.largest[lane].max(magnitude(x));
    }

    #[inline(always)]
    fn finish(self) -> Measured {
        let largest = self.largest.into_iter().fold(0, u32::max);
        Measured { sum: self.sums.iter().sum(), largest, ..Measured::NOTHING }
    }
}

/// The largest and the smallest magnitude.
#[derive(Clone, Copy)]
struct Extremes {
    largest: [u32; LANES],
    smallest: [u32; LANES],
}

impl Fold for Extremes {
    type Output = Measured;

    const START: Self = Self { largest: [0; LANES], smallest: [u32::MAX; LANES] };

    #[inline(always)]
    fn add<I: Isa>(&mut self, lane: usize, x: f32) {
        self.largest[lane] = self.largest[lane].max(magnitude(x));
        self.smallest[lane] = self.smallest[lane].min(magnitude(x));
    }

    #[inline(always)]
    fn finish(self) -> Measured {
        let largest = self.largest.into_iter().fold(0, u32::max);
        let smallest = self.smallest.into_iter().fold(u32::MAX, u32::min);
        Measured { largest, smallest, ..Measured::NOTHING }
    }
}

/// The extremes, and the sum of the powers of the ratios to one of them. The second read finds the piece in the cache.
fn powers(piece: Elements<'_>, p: f32) -> Measured {
    let extremes = fold::<Extremes>(&[piece])[0];
    let unit = extremes.unit(p);
    if unit == 0.0 || !unit.is_finite() {
        return extremes;
    }
    let sum = match piece {
        Elements::F32(elements) => sum_of_powers(elements, unit, p),
        Elements::F16(elements) => sum_of_powers(elements, unit, p),
        Elements::Bf16(elements) => sum_of_powers(elements, unit, p),
    };
    Measured { sum, ..extremes }
}

fn sum_of_powers<E: Element>(elements: &[E], unit: f64, p: f32) -> f64 {
    elements.iter().map(|x| (f64::from(x.widen()).abs() / unit).powf(p.into())).sum()
}

#[derive(Clone, Copy)]
struct Count {
    non_finite: [u32; LANES],
    zeros: [u32; LANES],
}

impl Fold for Count {
    type Output = Counts;

    const START: Self = Self { non_finite: [0; LANES], zeros: [0; LANES] };

    #[inline(always)]
    fn add<I: Isa>(&mut self, lane: usize, x: f32) {
        self.non_finite[lane] += u32::from(magnitude(x) >= f32::INFINITY.to_bits());
        self.zeros[lane] += u32::from(magnitude(x) == 0);
    }

    #[inline(always)]
    fn finish(self) -> Counts {
        let total = |counts: [u32; LANES]| counts.into_iter().map(u64::from).sum();
        Counts { non_finite: total(self.non_finite), zeros: total(self.zeros) }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::slice;

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

    fn of(piece: Elements<'_>, norm_type: NormType) -> Measured {
        measure(&[piece], norm_type)[0]
    }

    #[test]
    fn measures_every_length() {
        let numbers = numbers(5 * LANES);
        for (len, norm_type) in
            (0..=numbers.len()).flat_map(|len| NORM_TYPES.map(|norm_type| (len, norm_type)))
        {
            let measured = of(Elements::F32(&numbers[..len]), norm_type);
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
                NORM_TYPES[..5]
                    .iter()
                    .all(|&norm_type| of(Elements::F32(&piece), norm_type).norm(norm_type) == 3.0),
                "{i}"
            );
            let counts = Counts { zeros: piece.len() as u64 - 1, non_finite: 0 };
            assert_eq!(count(&[Elements::F32(&piece)]), [counts], "at {i}");
            piece[i] = 0.0;
        }
    }

    #[test]
    fn sees_the_smallest_wherever_it_is() {
        let mut piece = [-7.0; 3 * LANES + 5];
        for i in 0..piece.len() {
            piece[i] = -3.0;
            let measured = of(Elements::F32(&piece), NormType::P(f32::NEG_INFINITY));
            assert_eq!(measured.smallest, 3.0_f32.to_bits(), "at {i}");
            piece[i] = -7.0;
        }
    }

    #[test]
    fn ranks_nan_above_infinity_above_numbers() {
        let rank = |x: f32| of(Elements::F32(&[f32::MAX, x, -f32::MAX]), NormType::L2).largest;
        assert_eq!(rank(f32::NEG_INFINITY), f32::INFINITY.to_bits());
        assert!(rank(-f32::NAN) > f32::INFINITY.to_bits());
        assert_eq!(rank(1.0), f32::MAX.to_bits());
    }

    #[test]
    fn counts_what_is_not_finite() {
        let special: Vec<f32> = SPECIAL.into_iter().chain([f32::NAN]).cycle().take(9 * 7).collect();
        assert_eq!(count(&[Elements::F32(&special)]), [Counts { non_finite: 3 * 7, zeros: 2 * 7 }]);
    }

    /// Pieces of every type and of lengths around those of a grain, most of them not aligned, with special elements among them.
    fn pieces<'a>(numbers: &'a [f32], halves: &'a [f16], brains: &'a [bf16]) -> Vec<Elements<'a>> {
        let lens =
            [GRAIN, 5 * GRAIN, 0, 4099, 1, GRAIN - 1, LANES, 3 * GRAIN + LANES + 1, LANES - 1, GRAIN + 1];
        let wrap = |(i, len): (usize, usize)| match i % 3 {
            0 => Elements::F32(&numbers[i..][..len]),
            1 => Elements::F16(&halves[i..][..len]),
            _ => Elements::Bf16(&brains[i..][..len]),
        };
        lens.into_iter().cycle().take(31).enumerate().map(wrap).collect()
    }

    #[test]
    fn every_walk_and_instruction_set_gives_the_same_bits() {
        fn check<F: Fold<Output: Debug>>(pieces: &[Elements<'_>]) {
            // As text, in which all NaNs are alike, and any two numbers differ.
            let found = |pieces, walk| {
                let found = on_every_instruction_set(|| Folding { pieces, walk, fold: PhantomData::<F> });
                found.iter().map(|found| format!("{found:?}")).collect::<Vec<_>>()
            };
            let each: Vec<_> = pieces.iter().flat_map(|piece| fold::<F>(slice::from_ref(piece))).collect();
            for walk in Walk::many() {
                for count in [0, 1, 2, 7, 8, 9, pieces.len()] {
                    let expected = format!("{:?}", &each[..count]);
                    let same = found(&pieces[..count], walk).into_iter().all(|found| found == expected);
                    assert!(same, "{count} pieces, {walk:?}");
                }
            }
        }
        for special in [&SPECIAL[..4], &SPECIAL, &[f32::NAN]] {
            let mut numbers = numbers(4099 + 31);
            numbers.iter_mut().step_by(61).zip(special.iter().cycle()).for_each(|(x, special)| *x = *special);
            let halves: Vec<_> = numbers.iter().map(|&x| f16::from_f32(x / 1e10)).collect();
            let brains: Vec<_> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
            let pieces = pieces(&numbers, &halves, &brains);
            check::<Sum<Squares>>(&pieces);
            check::<Sum<Magnitudes>>(&pieces);
            check::<Extremes>(&pieces);
            check::<Count>(&pieces);
        }
    }

    #[test]
    fn narrow_elements_are_measured_as_the_f32_that_they_are() {
        let narrow: Vec<f16> = numbers(4099).iter().map(|&x| f16::from_f32(x / 1e10)).collect();
        let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
        for (len, norm_type) in [0, 1, 15, 16, 17, 4099].iter().flat_map(|len| NORM_TYPES.map(|n| (*len, n)))
        {
            assert_eq!(
                of(Elements::F16(&narrow[..len]), norm_type),
                of(Elements::F32(&wide[..len]), norm_type),
                "{len} {norm_type:?}"
            );
        }
    }
}
