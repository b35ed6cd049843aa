//! Read-only kernels: sums, extremes and counts.

use std::marker::PhantomData;
use std::mem;

use super::dispatch::dispatch;
use super::isa::{BlockElement, Isa, Kernel, LANES};
use super::traversal::{Stream, TILE_LEN, Traversal};
use crate::NormType;
use crate::cpu::elements::Elements;
use crate::cpu::norm_sums::NormSums;

/// Computes the sum or the extremes that a norm needs, for each chunk.
pub(in crate::cpu) fn measure(chunks: &[Elements<'_>], norm_type: NormType) -> Vec<NormSums> {
    match norm_type {
        NormType::L1 => fold::<SumAndMax<Magnitude>>(chunks),
        NormType::L2 => fold::<SumAndMax<Square>>(chunks),
        NormType::P(p) if p != 0.0 && p.is_finite() => {
            chunks.iter().map(|&chunk| scaled_powers(chunk, p)).collect()
        }
        NormType::Inf | NormType::P(_) => fold::<MinAndMax>(chunks),
    }
}

/// Counts the zeros and the non-finite elements of each chunk. A chunk must have fewer than 2³² elements.
pub(in crate::cpu) fn count(chunks: &[Elements<'_>]) -> Vec<ElementCounts> {
    fold::<Count>(chunks)
}

/// The numbers of zeros and of non-finite elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::cpu) struct ElementCounts {
    pub(in crate::cpu) non_finite: u64,
    pub(in crate::cpu) zeros: u64,
}

/// A reduction of a chunk with one independent accumulator per lane.
trait Fold: Copy {
    type Output: Copy;

    /// The value before the first element.
    const INITIAL: Self;

    /// Adds an element to a lane.
    fn add<I: Isa>(&mut self, lane: usize, x: f32);

    /// Combines the lanes.
    fn finish(self) -> Self::Output;
}

fn fold<F: Fold>(chunks: &[Elements<'_>]) -> Vec<F::Output> {
    dispatch(FoldChunks { chunks, traversal: Traversal::detect(), fold: PhantomData::<F> })
}

/// Folds each chunk separately.
struct FoldChunks<'a, F> {
    chunks: &'a [Elements<'a>],
    traversal: Traversal,
    fold: PhantomData<F>,
}

impl<F: Fold> Kernel for FoldChunks<'_, F> {
    type Output = Vec<F::Output>;

    #[inline(always)]
    fn run<I: Isa>(self) -> Vec<F::Output> {
        let Self { chunks, traversal, .. } = self;
        let mut outputs = vec![F::INITIAL.finish(); chunks.len()];
        let share = traversal.chunks_per_stream(chunks.len());
        let shares = chunks.chunks(share).zip(outputs.chunks_mut(share));
        let mut streams: Vec<FoldStream<'_, F>> = shares
            .map(|(chunks, outputs)| FoldStream { rest: EMPTY, fold: F::INITIAL, chunks, outputs })
            .collect();
        traversal.run::<I>(&mut streams);
        outputs
    }
}

/// The state of a stream before its first chunk.
const EMPTY: Elements<'_> = Elements::F32(&[]);

/// A read-only stream.
struct FoldStream<'a, F: Fold> {
    /// The rest of the current chunk.
    rest: Elements<'a>,
    /// The fold of the current chunk so far.
    fold: F,
    /// The chunks after the current one.
    chunks: &'a [Elements<'a>],
    /// The outputs of the current chunk and of the chunks after it.
    outputs: &'a mut [F::Output],
}

impl<F: Fold> Stream for FoldStream<'_, F> {
    #[inline(always)]
    fn advance<I: Isa>(&mut self, traversal: Traversal) -> bool {
        if self.rest.len() == 0 {
            let Some(chunk) = self.chunks.split_off_first() else { return false };
            self.rest = *chunk;
        }
        match self.rest.split_off_front(Traversal::turn_len(self.rest.element_size())) {
            Elements::F32(turn) => I::run(AddElements(turn, &mut self.fold, traversal)),
            Elements::F16(turn) => I::run(AddElements(turn, &mut self.fold, traversal)),
            Elements::Bf16(turn) => I::run(AddElements(turn, &mut self.fold, traversal)),
        }
        if self.rest.len() == 0
            && let Some(output) = self.outputs.split_off_first_mut()
        {
            *output = mem::replace(&mut self.fold, F::INITIAL).finish();
        }
        true
    }
}

/// Adds a run of elements to a fold.
struct AddElements<'a, E, F>(&'a [E], &'a mut F, Traversal);

impl<E: BlockElement, F: Fold> Kernel for AddElements<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self(elements, fold, traversal) = self;
        // Almost every f32 turn is one tile, whose loop unrolls. Loops over 16-bit elements are bound by arithmetic and
        // gain nothing from unrolling.
        if let Ok(tile) = <&[E; TILE_LEN]>::try_from(elements) {
            add_blocks::<I, E, F>(tile.as_chunks().0, fold, traversal);
        } else {
            let (blocks, rest) = elements.as_chunks();
            add_blocks::<I, E, F>(blocks, fold, traversal);
            rest.iter().enumerate().for_each(|(lane, x)| fold.add::<I>(lane, x.widen()));
        }
    }
}

#[inline(always)]
fn add_blocks<I: Isa, E: BlockElement, F: Fold>(blocks: &[[E; LANES]], fold: &mut F, traversal: Traversal) {
    // A local copy stays in registers.
    let mut lanes = *fold;
    for block in blocks {
        traversal.prefetch(block);
        let wide = E::widen_block::<I>(block);
        wide.into_iter().enumerate().for_each(|(lane, x)| lanes.add::<I>(lane, x));
    }
    *fold = lanes;
}

/// Returns the bits of |x|, which order like the magnitudes.
#[inline(always)]
fn magnitude_bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// The sum of a function of the elements, and the largest magnitude. One accumulator per lane is enough to hide the
/// latency of an addition, and few enough to stay in registers.
#[derive(Clone, Copy)]
struct SumAndMax<T> {
    sums: [f64; LANES],
    largest: [u32; LANES],
    term: PhantomData<T>,
}

/// The function that [`SumAndMax`] sums.
trait Term: Copy {
    fn add<I: Isa>(sum: f64, x: f32) -> f64;
}

#[derive(Clone, Copy)]
struct Magnitude;

impl Term for Magnitude {
    #[inline(always)]
    fn add<I: Isa>(sum: f64, x: f32) -> f64 {
        sum + f64::from(x).abs()
    }
}

#[derive(Clone, Copy)]
struct Square;

impl Term for Square {
    #[inline(always)]
    fn add<I: Isa>(sum: f64, x: f32) -> f64 {
        I::add_square(sum, x)
    }
}

impl<T: Term> Fold for SumAndMax<T> {
    type Output = NormSums;

    const INITIAL: Self = Self { sums: [0.0; LANES], largest: [0; LANES], term: PhantomData };

    #[inline(always)]
    fn add<I: Isa>(&mut self, lane: usize, x: f32) {
        self.sums[lane] = T::add::<I>(self.sums[lane], x);
        self.largest[lane] = self.largest[lane].max(magnitude_bits(x));
    }

    #[inline(always)]
    fn finish(self) -> NormSums {
        let largest = self.largest.into_iter().fold(0, u32::max);
        NormSums { sum: self.sums.iter().sum(), largest, ..NormSums::EMPTY }
    }
}

/// The smallest and the largest magnitude.
#[derive(Clone, Copy)]
struct MinAndMax {
    largest: [u32; LANES],
    smallest: [u32; LANES],
}

impl Fold for MinAndMax {
    type Output = NormSums;

    const INITIAL: Self = Self { largest: [0; LANES], smallest: [u32::MAX; LANES] };

    #[inline(always)]
    fn add<I: Isa>(&mut self, lane: usize, x: f32) {
        self.largest[lane] = self.largest[lane].max(magnitude_bits(x));
        self.smallest[lane] = self.smallest[lane].min(magnitude_bits(x));
    }

    #[inline(always)]
    fn finish(self) -> NormSums {
        let largest = self.largest.into_iter().fold(0, u32::max);
        let smallest = self.smallest.into_iter().fold(u32::MAX, u32::min);
        NormSums { largest, smallest, ..NormSums::EMPTY }
    }
}

/// Computes the extremes, and the sum of powers scaled by one of them. The second pass reads the chunk from the cache.
fn scaled_powers(chunk: Elements<'_>, p: f32) -> NormSums {
    let extremes = fold::<MinAndMax>(&[chunk])[0];
    let scale = extremes.scale(p);
    if scale == 0.0 || !scale.is_finite() {
        return extremes;
    }
    let sum = match chunk {
        Elements::F32(elements) => sum_of_powers(elements, scale, p),
        Elements::F16(elements) => sum_of_powers(elements, scale, p),
        Elements::Bf16(elements) => sum_of_powers(elements, scale, p),
    };
    NormSums { sum, ..extremes }
}

fn sum_of_powers<E: BlockElement>(elements: &[E], scale: f64, p: f32) -> f64 {
    elements.iter().map(|x| (f64::from(x.widen()).abs() / scale).powf(p.into())).sum()
}

#[derive(Clone, Copy)]
struct Count {
    non_finite: [u32; LANES],
    zeros: [u32; LANES],
}

impl Fold for Count {
    type Output = ElementCounts;

    const INITIAL: Self = Self { non_finite: [0; LANES], zeros: [0; LANES] };

    #[inline(always)]
    fn add<I: Isa>(&mut self, lane: usize, x: f32) {
        self.non_finite[lane] += u32::from(magnitude_bits(x) >= f32::INFINITY.to_bits());
        self.zeros[lane] += u32::from(magnitude_bits(x) == 0);
    }

    #[inline(always)]
    fn finish(self) -> ElementCounts {
        let total = |counts: [u32; LANES]| counts.into_iter().map(u64::from).sum();
        ElementCounts { non_finite: total(self.non_finite), zeros: total(self.zeros) }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::slice;

    use half::{bf16, f16};

    use super::*;
    use crate::cpu::kernels::dispatch::run_with_each_isa;
    use crate::cpu::kernels::test_values::{SPECIAL, numbers};
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

    fn measure_one(chunk: Elements<'_>, norm_type: NormType) -> NormSums {
        measure(&[chunk], norm_type)[0]
    }

    #[test]
    fn measures_every_length() {
        let numbers = numbers(5 * LANES);
        for (len, norm_type) in
            (0..=numbers.len()).flat_map(|len| NORM_TYPES.map(|norm_type| (len, norm_type)))
        {
            let sums = measure_one(Elements::F32(&numbers[..len]), norm_type);
            let (norm, expected) = (sums.norm(norm_type), reference::norm(&[&numbers[..len]], norm_type));
            assert!(
                (norm - expected).abs() <= 1e-13 * expected,
                "{len} {norm_type:?}: {norm} but {expected}"
            );
            assert_eq!(
                sums.largest,
                reference::max_magnitude(&[&numbers[..len]]).to_bits(),
                "{len} elements"
            );
        }
    }

    #[test]
    fn measures_a_single_nonzero_element_at_every_index() {
        let mut chunk = [0.0; 3 * LANES + 5];
        for i in 0..chunk.len() {
            chunk[i] = -3.0;
            assert!(
                NORM_TYPES[..5]
                    .iter()
                    .all(|&norm_type| measure_one(Elements::F32(&chunk), norm_type).norm(norm_type) == 3.0),
                "{i}"
            );
            let counts = ElementCounts { zeros: chunk.len() as u64 - 1, non_finite: 0 };
            assert_eq!(count(&[Elements::F32(&chunk)]), [counts], "at {i}");
            chunk[i] = 0.0;
        }
    }

    #[test]
    fn finds_the_smallest_magnitude_at_every_index() {
        let mut chunk = [-7.0; 3 * LANES + 5];
        for i in 0..chunk.len() {
            chunk[i] = -3.0;
            let sums = measure_one(Elements::F32(&chunk), NormType::P(f32::NEG_INFINITY));
            assert_eq!(sums.smallest, 3.0_f32.to_bits(), "at {i}");
            chunk[i] = -7.0;
        }
    }

    #[test]
    fn largest_magnitude_orders_nan_above_infinity_above_finite() {
        let rank = |x: f32| measure_one(Elements::F32(&[f32::MAX, x, -f32::MAX]), NormType::L2).largest;
        assert_eq!(rank(f32::NEG_INFINITY), f32::INFINITY.to_bits());
        assert!(rank(-f32::NAN) > f32::INFINITY.to_bits());
        assert_eq!(rank(1.0), f32::MAX.to_bits());
    }

    #[test]
    fn counts_zeros_and_non_finite_elements() {
        let special: Vec<f32> = SPECIAL.into_iter().chain([f32::NAN]).cycle().take(9 * 7).collect();
        assert_eq!(count(&[Elements::F32(&special)]), [ElementCounts { non_finite: 3 * 7, zeros: 2 * 7 }]);
    }

    /// Lists chunks of every type and of lengths around the tile length, most of them unaligned.
    fn chunks<'a>(numbers: &'a [f32], f16s: &'a [f16], bf16s: &'a [bf16]) -> Vec<Elements<'a>> {
        let lens = [
            TILE_LEN,
            5 * TILE_LEN,
            0,
            4099,
            1,
            TILE_LEN - 1,
            LANES,
            3 * TILE_LEN + LANES + 1,
            LANES - 1,
            TILE_LEN + 1,
        ];
        let wrap = |(i, len): (usize, usize)| match i % 3 {
            0 => Elements::F32(&numbers[i..][..len]),
            1 => Elements::F16(&f16s[i..][..len]),
            _ => Elements::Bf16(&bf16s[i..][..len]),
        };
        lens.into_iter().cycle().take(31).enumerate().map(wrap).collect()
    }

    #[test]
    fn every_traversal_and_instruction_set_gives_the_same_bits() {
        fn check<F: Fold<Output: Debug>>(chunks: &[Elements<'_>]) {
            // Outputs are compared as debug text: NaNs are then equal, and different numbers still differ.
            let fold_with_each_isa = |chunks, traversal| {
                let outputs = run_with_each_isa(|| FoldChunks { chunks, traversal, fold: PhantomData::<F> });
                outputs.iter().map(|output| format!("{output:?}")).collect::<Vec<_>>()
            };
            let each: Vec<_> = chunks.iter().flat_map(|chunk| fold::<F>(slice::from_ref(chunk))).collect();
            for traversal in Traversal::candidates() {
                for count in [0, 1, 2, 7, 8, 9, chunks.len()] {
                    let expected = format!("{:?}", &each[..count]);
                    let outputs = fold_with_each_isa(&chunks[..count], traversal);
                    assert!(
                        outputs.into_iter().all(|output| output == expected),
                        "{count} chunks, {traversal:?}"
                    );
                }
            }
        }
        for special in [&SPECIAL[..4], &SPECIAL, &[f32::NAN]] {
            let mut numbers = numbers(4099 + 31);
            numbers.iter_mut().step_by(61).zip(special.iter().cycle()).for_each(|(x, special)| *x = *special);
            let f16s: Vec<_> = numbers.iter().map(|&x| f16::from_f32(x / 1e10)).collect();
            let bf16s: Vec<_> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
            let chunks = chunks(&numbers, &f16s, &bf16s);
            check::<SumAndMax<Square>>(&chunks);
            check::<SumAndMax<Magnitude>>(&chunks);
            check::<MinAndMax>(&chunks);
            check::<Count>(&chunks);
        }
    }

    #[test]
    fn measures_16_bit_elements_like_f32() {
        let narrow: Vec<f16> = numbers(4099).iter().map(|&x| f16::from_f32(x / 1e10)).collect();
        let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
        for (len, norm_type) in [0, 1, 15, 16, 17, 4099].iter().flat_map(|len| NORM_TYPES.map(|n| (*len, n)))
        {
            assert_eq!(
                measure_one(Elements::F16(&narrow[..len]), norm_type),
                measure_one(Elements::F32(&wide[..len]), norm_type),
                "{len} {norm_type:?}"
            );
        }
    }
}
