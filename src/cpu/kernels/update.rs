//! Kernels that write: scaling, zeroing and clamping.

use std::slice;

use super::dispatch::dispatch;
use super::isa::{BlockElement, Isa, Kernel, LANES};
use super::traversal::{CACHE_LINE, Stream, TILE_LEN, Traversal};
use crate::ClipRecord;
use crate::cpu::elements::ElementsMut;

/// An elementwise update of a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cpu) enum Update {
    /// Multiplies every element by a factor.
    Scale(f32),
    /// Multiplies every element by a factor below the normal range of f32.
    ScaleF64(f64),
    /// Sets every element to +0.
    Zero,
    /// Clamps every element to a range.
    Clamp { low: f32, high: f32 },
    /// Multiplies every element by a factor, rounds it to the element type, and clamps it to a range.
    ScaleClamp { factor: f32, low: f32, high: f32 },
}

impl Update {
    /// Returns the update that applies a record, or `None` if its factor is 1, which changes nothing.
    pub(in crate::cpu) fn from_record(record: &ClipRecord) -> Option<Self> {
        match (record.factor, record.factor_below_f32()) {
            _ if record.zeroed() => Some(Self::Zero),
            (_, Some(factor)) => Some(Self::ScaleF64(factor)),
            (1.0, None) => None,
            (factor, None) => Some(Self::Scale(factor)),
        }
    }

    /// Returns the update of a clip by value.
    pub(in crate::cpu) fn clamp(low: f32, high: f32, inverse_scale: Option<f32>) -> Self {
        match inverse_scale {
            None | Some(1.0) => Self::Clamp { low, high },
            Some(factor) => Self::ScaleClamp { factor, low, high },
        }
    }
}

/// Applies an update to each chunk in place.
pub(in crate::cpu) fn update(chunks: &mut [(ElementsMut<'_>, Update)]) {
    dispatch(UpdateChunks { chunks, traversal: Traversal::detect() });
}

/// Applies to each column of a matrix its update, if it has one. The elements are whole rows.
pub(in crate::cpu) fn update_columns(elements: ElementsMut<'_>, updates: &[Option<Update>]) {
    let factor = |update: &Option<Update>| match update {
        None => Some(1.0),
        Some(Update::Scale(factor)) => Some(*factor),
        Some(_) => None,
    };
    let factors: Option<Vec<f32>> = updates.iter().map(factor).collect();
    dispatch(UpdateColumns { elements, updates, factors: factors.as_deref() });
}

struct UpdateColumns<'a> {
    elements: ElementsMut<'a>,
    updates: &'a [Option<Update>],
    /// The factor of each column, if all updates are multiplications in f32. 1 is no update.
    factors: Option<&'a [f32]>,
}

impl Kernel for UpdateColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self { elements, updates, factors } = self;
        match elements {
            ElementsMut::F32(elements) => update_rows::<I, _>(elements, updates, factors),
            ElementsMut::F16(elements) => update_rows::<I, _>(elements, updates, factors),
            ElementsMut::Bf16(elements) => update_rows::<I, _>(elements, updates, factors),
        }
    }
}

#[inline(always)]
fn update_rows<I: Isa, E: BlockElement>(
    elements: &mut [E],
    updates: &[Option<Update>],
    factors: Option<&[f32]>,
) {
    let Some(factors) = factors else {
        for row in elements.chunks_exact_mut(updates.len()) {
            row.iter_mut().zip(updates).for_each(|(x, update)| *x = updated(*x, *update));
        }
        return;
    };
    for row in elements.chunks_exact_mut(factors.len()) {
        let (blocks, rest) = row.as_chunks_mut::<LANES>();
        let (block_factors, rest_factors) = factors.as_chunks::<LANES>();
        for (block, factors) in blocks.iter_mut().zip(block_factors) {
            let mut wide = E::widen_block::<I>(block);
            wide.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
            let scaled = E::narrow_block::<I>(wide);
            // Keeps the bits of a NaN in a column without an update.
            for ((x, scaled), factor) in block.iter_mut().zip(scaled).zip(factors) {
                *x = if *factor == 1.0 { *x } else { scaled };
            }
        }
        for (x, factor) in rest.iter_mut().zip(rest_factors) {
            *x = if *factor == 1.0 { *x } else { E::narrow(x.widen() * factor) };
        }
    }
}

/// Returns an element after the update of its column by a record.
#[inline(always)]
fn updated<E: BlockElement>(x: E, update: Option<Update>) -> E {
    match update {
        None => x,
        Some(Update::Scale(factor)) => E::narrow(x.widen() * factor),
        Some(Update::ScaleF64(factor)) => scale_f64(x, factor),
        Some(Update::Zero) => E::narrow(0.0),
        Some(Update::Clamp { low, high }) => x.clamped(E::bound(low), E::bound(high)),
        Some(Update::ScaleClamp { factor, low, high }) => {
            E::narrow(x.widen() * factor).clamped(E::bound(low), E::bound(high))
        }
    }
}

struct UpdateChunks<'a, 'b> {
    chunks: &'a mut [(ElementsMut<'b>, Update)],
    traversal: Traversal,
}

impl Kernel for UpdateChunks<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self { chunks, traversal } = self;
        let shares = chunks.chunks_mut(traversal.chunks_per_stream(chunks.len()));
        let mut streams: Vec<UpdateStream<'_, '_>> = shares.map(UpdateStream::new).collect();
        traversal.run::<I>(&mut streams);
    }
}

/// A stream that is read and written.
struct UpdateStream<'a, 'b> {
    /// The rest of the current chunk.
    rest: ElementsMut<'a>,
    update: Update,
    /// The chunks after the current one.
    chunks: slice::IterMut<'a, (ElementsMut<'b>, Update)>,
}

impl<'a, 'b> UpdateStream<'a, 'b> {
    fn new(chunks: &'a mut [(ElementsMut<'b>, Update)]) -> Self {
        Self { rest: ElementsMut::F32(&mut []), update: Update::Zero, chunks: chunks.iter_mut() }
    }
}

impl Stream for UpdateStream<'_, '_> {
    #[inline(always)]
    fn advance<I: Isa>(&mut self, traversal: Traversal) -> bool {
        if self.rest.len() == 0 {
            let Some((chunk, update)) = self.chunks.next() else { return false };
            (self.rest, self.update) = (chunk.reborrow(), *update);
        }
        match self.rest.split_off_front(Traversal::turn_len(self.rest.element_size())) {
            ElementsMut::F32(elements) => update_elements::<I, _>(elements, self.update, traversal),
            ElementsMut::F16(elements) => update_elements::<I, _>(elements, self.update, traversal),
            ElementsMut::Bf16(elements) => update_elements::<I, _>(elements, self.update, traversal),
        }
        true
    }
}

#[inline(always)]
fn update_elements<I: Isa, E: BlockElement>(elements: &mut [E], update: Update, traversal: Traversal) {
    match update {
        Update::Scale(factor) => I::run(Scale(elements, factor, traversal)),
        Update::ScaleF64(factor) => elements.iter_mut().for_each(|x| *x = scale_f64(*x, factor)),
        Update::Zero => elements.fill(E::narrow(0.0)),
        Update::Clamp { low, high } => I::run(Clamp(elements, E::bound(low), E::bound(high), traversal)),
        Update::ScaleClamp { factor, low, high } => {
            I::run(ScaleClamp(elements, factor, E::bound(low), E::bound(high), traversal));
        }
    }
}

struct Scale<'a, E>(&'a mut [E], f32, Traversal);

impl<E: BlockElement> Kernel for Scale<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self(elements, factor, traversal) = self;
        let (blocks, rest) = elements.as_chunks_mut::<LANES>();
        for block in blocks {
            // In this loop, the prefetch also keeps compilers from vectorising across blocks, which would halve the
            // speed for 16-bit elements.
            traversal.prefetch(block);
            let mut wide = E::widen_block::<I>(block);
            for x in &mut wide {
                *x *= factor;
            }
            *block = E::narrow_block::<I>(wide);
        }
        for x in rest {
            *x = E::narrow(x.widen() * factor);
        }
    }
}

struct ScaleClamp<'a, E>(&'a mut [E], f32, E, E, Traversal);

impl<E: BlockElement> Kernel for ScaleClamp<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self(elements, factor, low, high, traversal) = self;
        let (blocks, rest) = elements.as_chunks_mut::<LANES>();
        for block in blocks {
            traversal.prefetch(block);
            let mut wide = E::widen_block::<I>(block);
            for x in &mut wide {
                *x *= factor;
            }
            *block = E::narrow_block::<I>(wide);
            for x in block {
                *x = x.clamped(low, high);
            }
        }
        for x in rest {
            *x = E::narrow(x.widen() * factor).clamped(low, high);
        }
    }
}

/// Multiplies in f64, and rounds the product to f32 and then to the element type.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "rounding is intended")]
fn scale_f64<E: BlockElement>(x: E, factor: f64) -> E {
    E::narrow((f64::from(x.widen()) * factor) as f32)
}

struct Clamp<'a, E>(&'a mut [E], E, E, Traversal);

impl<E: BlockElement> Kernel for Clamp<'_, E> {
    type Output = ();

    /// Writes only the tiles that change. Most gradients are within their bounds, and reading memory costs half of
    /// updating it.
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self(elements, low, high, traversal) = self;
        // A tile is 512 bytes.
        let rest = if size_of::<E>() == size_of::<f32>() {
            clamp_tiles::<E, TILE_LEN>(elements, low, high, traversal)
        } else {
            clamp_tiles::<E, { 2 * TILE_LEN }>(elements, low, high, traversal)
        };
        for x in rest {
            let clamped = x.clamped(low, high);
            if clamped.bits() != x.bits() {
                *x = clamped;
            }
        }
    }
}

/// Clamps all tiles of `LEN` elements, and returns the remaining elements.
#[inline(always)]
fn clamp_tiles<E: BlockElement, const LEN: usize>(
    elements: &mut [E],
    low: E,
    high: E,
    traversal: Traversal,
) -> &mut [E] {
    let (tiles, rest) = elements.as_chunks_mut::<LEN>();
    for tile in tiles {
        tile.chunks(CACHE_LINE / size_of::<E>()).for_each(|line| traversal.prefetch(line));
        let mut clamped = *tile;
        for x in &mut clamped {
            *x = x.clamped(low, high);
        }
        // An OR of differing bits vectorises. `any` would branch on every element.
        let pairs = tile.iter().zip(&clamped);
        let changes = pairs.fold(E::Bits::default(), |all, (x, y)| all | x.bits() ^ y.bits());
        if changes != E::Bits::default() {
            *tile = clamped;
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::cpu::kernels::dispatch::run_with_each_isa;
    use crate::cpu::kernels::test_values::{SPECIAL, numbers};
    use crate::reference;

    /// An element type with a variant of [`ElementsMut`].
    trait Wrap: BlockElement {
        fn wrap(elements: &mut [Self]) -> ElementsMut<'_>;
    }

    impl Wrap for f32 {
        fn wrap(elements: &mut [Self]) -> ElementsMut<'_> {
            ElementsMut::F32(elements)
        }
    }

    impl Wrap for f16 {
        fn wrap(elements: &mut [Self]) -> ElementsMut<'_> {
            ElementsMut::F16(elements)
        }
    }

    impl Wrap for bf16 {
        fn wrap(elements: &mut [Self]) -> ElementsMut<'_> {
            ElementsMut::Bf16(elements)
        }
    }

    const RANGES: [(f32, f32); 5] =
        [(-1.0, 1.0), (-0.0, 0.0), (0.0, 0.0), (2.0, f32::INFINITY), (-1e-45, 1e30)];

    fn bits<E: BlockElement>(numbers: &[E]) -> Vec<E::Bits> {
        numbers.iter().map(|x| x.bits()).collect()
    }

    fn lengths() -> impl Iterator<Item = usize> {
        (0..20).chain(TILE_LEN - 2..TILE_LEN + 3).chain([3 * TILE_LEN + 7])
    }

    fn special(len: usize) -> impl Iterator<Item = f32> {
        SPECIAL.into_iter().chain([f32::NAN, 7e4, -3.0, 6e-8]).cycle().take(len)
    }

    /// Checks that an update computes in f32 and then rounds to the element type.
    fn agrees_with_f32<E: Wrap>(len: usize, kind: Update, max: f32) {
        let bound = |x: f32| E::narrow(if x.is_finite() { x.clamp(-max, max) } else { x }).widen();
        let before: Vec<E> = special(len).map(E::narrow).collect();
        let expected: Vec<E::Bits> = before
            .iter()
            .map(|x| match kind {
                Update::Scale(factor) => E::narrow(x.widen() * factor).bits(),
                Update::ScaleF64(factor) => E::narrow(reference::scale(x.widen(), factor)).bits(),
                Update::Zero => E::Bits::default(),
                Update::Clamp { .. } if x.widen().is_nan() => x.bits(),
                Update::Clamp { low, high } => {
                    E::narrow(reference::clamp(x.widen(), bound(low), bound(high))).bits()
                }
                Update::ScaleClamp { factor, low, high } => {
                    let product = E::narrow(reference::scale(x.widen(), factor.into())).widen();
                    E::narrow(reference::clamp(product, bound(low), bound(high))).bits()
                }
            })
            .collect();
        let mut after = before;
        update(&mut [(E::wrap(&mut after), kind)]);
        assert_eq!(bits(&after), expected, "{len} elements, {kind:?}");
    }

    #[test]
    fn updates_every_length_and_type_bit_for_bit() {
        let clamps = RANGES.map(|(low, high)| Update::Clamp { low, high });
        for kind in clamps.into_iter().chain([
            Update::Zero,
            Update::Scale(0.3),
            Update::Scale(0.0),
            Update::ScaleF64(1e-44),
            Update::ScaleClamp { factor: 0.3, low: -1.0, high: 1.0 },
            Update::ScaleClamp { factor: 1e-40, low: -0.0, high: f32::INFINITY },
            Update::ScaleClamp { factor: 3e38, low: 0.0, high: 1e30 },
        ]) {
            for len in lengths() {
                agrees_with_f32::<f32>(len, kind, f32::MAX);
                agrees_with_f32::<f16>(len, kind, 65504.0);
                agrees_with_f32::<bf16>(len, kind, 3.389_531_4e38);
            }
        }
    }

    #[test]
    fn clamps_a_tile_with_one_element_out_of_range() {
        for outside in [0, 1, TILE_LEN - 1, TILE_LEN, 2 * TILE_LEN - 1, 2 * TILE_LEN] {
            let mut chunk = [0.5; 2 * TILE_LEN + 1];
            chunk[outside] = -7.0;
            update(&mut [(ElementsMut::F32(&mut chunk), Update::Clamp { low: -1.0, high: 1.0 })]);
            assert_eq!(chunk[outside], -1.0, "at {outside}");
            assert_eq!(chunk.iter().filter(|&&x| x == 0.5).count(), 2 * TILE_LEN);
        }
    }

    /// Updates copies of its inputs and returns them.
    struct UpdateCopies<'a>(&'a [f32], &'a [f16], &'a [bf16], Traversal, usize);

    impl Kernel for UpdateCopies<'_> {
        type Output = (Vec<u32>, Vec<u16>, Vec<u16>);

        /// Mixes element types, lengths around the tile length, and updates.
        #[inline(always)]
        fn run<I: Isa>(self) -> Self::Output {
            let Self(numbers, f16s, bf16s, traversal, count) = self;
            let (mut numbers, mut f16s, mut bf16s) = (numbers.to_vec(), f16s.to_vec(), bf16s.to_vec());
            let updates = [
                Update::Scale(0.3),
                Update::Clamp { low: -1e3, high: 1e4 },
                Update::Zero,
                Update::Clamp { low: -1e30, high: 1e30 },
                Update::Scale(7.0),
                Update::ScaleClamp { factor: 3.0, low: -1e3, high: 1e5 },
            ];
            let lens =
                [TILE_LEN, 3 * TILE_LEN, 1, 7 * TILE_LEN + LANES + 1, TILE_LEN - 1, LANES, TILE_LEN + 1];
            let mut rests = (&mut numbers[1..], &mut f16s[1..], &mut bf16s[1..]);
            let mut chunks = Vec::new();
            for (i, len) in lens.into_iter().cycle().take(count).enumerate() {
                let chunk = match i % 3 {
                    0 => ElementsMut::F32(rests.0.split_off_mut(..len).unwrap()),
                    1 => ElementsMut::F16(rests.1.split_off_mut(..len).unwrap()),
                    _ => ElementsMut::Bf16(rests.2.split_off_mut(..len).unwrap()),
                };
                chunks.push((chunk, updates[i % updates.len()]));
            }
            UpdateChunks { chunks: &mut chunks, traversal }.run::<I>();
            (bits(&numbers), bits(&f16s), bits(&bf16s))
        }
    }

    #[test]
    fn every_traversal_and_instruction_set_gives_the_same_bits() {
        let mut numbers = numbers(20 * TILE_LEN);
        numbers.iter_mut().step_by(61).zip(special(20 * TILE_LEN)).for_each(|(x, special)| *x = special);
        let f16s: Vec<_> = numbers.iter().map(|&x| f16::from_f32(x / 1e10)).collect();
        let bf16s: Vec<_> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
        for count in [0, 1, 2, 7, 8, 9, 17] {
            let updated =
                |traversal| run_with_each_isa(|| UpdateCopies(&numbers, &f16s, &bf16s, traversal, count));
            let outputs: Vec<_> = Traversal::candidates().flat_map(updated).collect();
            assert!(outputs.iter().all(|output| *output == outputs[0]), "{count} chunks");
        }
    }
}
