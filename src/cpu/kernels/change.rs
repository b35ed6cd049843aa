//! The loops that write.

use std::slice;

use super::walk::{GRAIN, LINE, Stream, Walk};
use super::{Isa, Kernel, LANES, dispatch};
use crate::ClipRecord;
use crate::cpu::element::Element;
use crate::cpu::gradient::ElementsMut;

/// What becomes of every element of a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cpu) enum Change {
    /// It is multiplied by this.
    Scale(f32),
    /// It is multiplied by this, which f32 does not hold.
    ScaleFar(f64),
    /// It becomes +0, whatever it was.
    Zero,
    /// It goes to the nearest number in this range.
    Clamp { low: f32, high: f32 },
}

impl Change {
    /// What a record asks for. A factor of 1 would leave every bit as it was.
    pub(in crate::cpu) fn of(record: &ClipRecord) -> Option<Self> {
        match (record.factor, record.factor_below_f32()) {
            _ if record.zeroed() => Some(Self::Zero),
            (_, Some(factor)) => Some(Self::ScaleFar(factor)),
            (1.0, None) => None,
            (factor, None) => Some(Self::Scale(factor)),
        }
    }
}

/// Changes every element of every piece in place.
pub(in crate::cpu) fn change(pieces: &mut [(ElementsMut<'_>, Change)]) {
    dispatch(Changing { pieces, walk: Walk::here() });
}

struct Changing<'a, 'b> {
    pieces: &'a mut [(ElementsMut<'b>, Change)],
    walk: Walk,
}

impl Kernel for Changing<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self { pieces, walk } = self;
        let shares = pieces.chunks_mut(walk.share(pieces.len()));
        let mut streams: Vec<Writing<'_, '_>> = shares.map(Writing::new).collect();
        walk.through::<I>(&mut streams);
    }
}

/// A stream that is read and written.
struct Writing<'a, 'b> {
    /// What is left of the current piece.
    rest: ElementsMut<'a>,
    change: Change,
    /// The pieces after it.
    pieces: slice::IterMut<'a, (ElementsMut<'b>, Change)>,
}

impl<'a, 'b> Writing<'a, 'b> {
    fn new(pieces: &'a mut [(ElementsMut<'b>, Change)]) -> Self {
        Self { rest: ElementsMut::F32(&mut []), change: Change::Zero, pieces: pieces.iter_mut() }
    }
}

impl Stream for Writing<'_, '_> {
    #[inline(always)]
    fn step<I: Isa>(&mut self, walk: Walk) -> bool {
        if self.rest.len() == 0 {
            let Some((piece, change)) = self.pieces.next() else { return false };
            (self.rest, self.change) = (piece.reborrow(), *change);
        }
        match self.rest.split_off_front(Walk::step(self.rest.element_size())) {
            ElementsMut::F32(grain) => write::<I, _>(grain, self.change, walk),
            ElementsMut::F16(grain) => write::<I, _>(grain, self.change, walk),
            ElementsMut::Bf16(grain) => write::<I, _>(grain, self.change, walk),
        }
        true
    }
}

#[inline(always)]
fn write<I: Isa, E: Element>(grain: &mut [E], change: Change, walk: Walk) {
    match change {
        Change::Scale(factor) => I::run(Scale(grain, factor, walk)),
        Change::ScaleFar(factor) => grain.iter_mut().for_each(|x| *x = scaled_far(*x, factor)),
        Change::Zero => grain.fill(E::narrow(0.0)),
        Change::Clamp { low, high } => I::run(Clamp(grain, E::bound(low), E::bound(high), walk)),
    }
}

struct Scale<'a, E>(&'a mut [E], f32, Walk);

impl<E: Element> Kernel for Scale<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self(grain, factor, walk) = self;
        let (blocks, rest) = grain.as_chunks_mut::<LANES>();
        for block in blocks {
            // Here, where it also keeps compilers from vectorising across blocks, which costs 16-bit elements half of their speed.
            walk.prefetch_after(block);
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

/// The product of an element and a factor that f32 does not hold, rounded to f32 before it is rounded to the element's type.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
fn scaled_far<E: Element>(x: E, factor: f64) -> E {
    E::narrow((f64::from(x.widen()) * factor) as f32)
}

struct Clamp<'a, E>(&'a mut [E], E, E, Walk);

impl<E: Element> Kernel for Clamp<'_, E> {
    type Output = ();

    /// Most gradients are within their bounds, and memory that is only read costs half of memory that is written.
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self(elements, low, high, walk) = self;
        // 512 bytes each.
        let rest = if size_of::<E>() == size_of::<f32>() {
            clamp_grains::<E, GRAIN>(elements, low, high, walk)
        } else {
            clamp_grains::<E, { 2 * GRAIN }>(elements, low, high, walk)
        };
        for x in rest {
            let clamped = x.clamped(low, high);
            if clamped.bits() != x.bits() {
                *x = clamped;
            }
        }
    }
}

/// Clamps all grains of `LEN` elements, and returns the rest.
#[inline(always)]
fn clamp_grains<E: Element, const LEN: usize>(elements: &mut [E], low: E, high: E, walk: Walk) -> &mut [E] {
    let (grains, rest) = elements.as_chunks_mut::<LEN>();
    for grain in grains {
        grain.chunks(LINE / size_of::<E>()).for_each(|line| walk.prefetch_after(line));
        let mut clamped = *grain;
        for x in &mut clamped {
            *x = x.clamped(low, high);
        }
        // One bit set that differs, rather than `any`: without a branch per element it is several per instruction.
        let pairs = grain.iter().zip(&clamped);
        let changes = pairs.fold(E::Bits::default(), |all, (x, y)| all | x.bits() ^ y.bits());
        if changes != E::Bits::default() {
            *grain = clamped;
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::tests::{SPECIAL, numbers, on_every_instruction_set};
    use super::*;
    use crate::reference;

    /// The type of a gradient of such elements.
    trait Wrap: Element {
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

    fn bits<E: Element>(numbers: &[E]) -> Vec<E::Bits> {
        numbers.iter().map(|x| x.bits()).collect()
    }

    fn lengths() -> impl Iterator<Item = usize> {
        (0..20).chain(GRAIN - 2..GRAIN + 3).chain([3 * GRAIN + 7])
    }

    fn special(len: usize) -> impl Iterator<Item = f32> {
        SPECIAL.into_iter().chain([f32::NAN, 7e4, -3.0, 6e-8]).cycle().take(len)
    }

    /// A change of narrow elements is one of the f32 that they are, rounded.
    fn agrees_with_f32<E: Wrap>(len: usize, how: Change, max: f32) {
        let bound = |x: f32| E::narrow(if x.is_finite() { x.clamp(-max, max) } else { x }).widen();
        let before: Vec<E> = special(len).map(E::narrow).collect();
        let expected: Vec<E::Bits> = before
            .iter()
            .map(|x| match how {
                Change::Scale(factor) => E::narrow(x.widen() * factor).bits(),
                Change::ScaleFar(factor) => E::narrow(reference::scale(x.widen(), factor)).bits(),
                Change::Zero => E::Bits::default(),
                Change::Clamp { .. } if x.widen().is_nan() => x.bits(),
                Change::Clamp { low, high } => {
                    E::narrow(reference::clamp(x.widen(), bound(low), bound(high))).bits()
                }
            })
            .collect();
        let mut after = before;
        change(&mut [(E::wrap(&mut after), how)]);
        assert_eq!(bits(&after), expected, "{len} elements, {how:?}");
    }

    #[test]
    fn changes_every_length_and_type_to_the_bit() {
        let clamps = RANGES.map(|(low, high)| Change::Clamp { low, high });
        for how in clamps.into_iter().chain([
            Change::Zero,
            Change::Scale(0.3),
            Change::Scale(0.0),
            Change::ScaleFar(1e-44),
        ]) {
            for len in lengths() {
                agrees_with_f32::<f32>(len, how, f32::MAX);
                agrees_with_f32::<f16>(len, how, 65504.0);
                agrees_with_f32::<bf16>(len, how, 3.389_531_4e38);
            }
        }
    }

    #[test]
    fn clamps_a_grain_with_a_single_element_outside() {
        for outside in [0, 1, GRAIN - 1, GRAIN, 2 * GRAIN - 1, 2 * GRAIN] {
            let mut piece = [0.5; 2 * GRAIN + 1];
            piece[outside] = -7.0;
            change(&mut [(ElementsMut::F32(&mut piece), Change::Clamp { low: -1.0, high: 1.0 })]);
            assert_eq!(piece[outside], -1.0, "at {outside}");
            assert_eq!(piece.iter().filter(|&&x| x == 0.5).count(), 2 * GRAIN);
        }
    }

    /// The kernel, with a copy of what it changes, which is its output.
    struct Copied<'a>(&'a [f32], &'a [f16], &'a [bf16], Walk, usize);

    impl Kernel for Copied<'_> {
        type Output = (Vec<u32>, Vec<u16>, Vec<u16>);

        /// Pieces of all types and lengths around those of a grain, each with another change.
        #[inline(always)]
        fn run<I: Isa>(self) -> Self::Output {
            let Self(numbers, halves, brains, walk, count) = self;
            let (mut numbers, mut halves, mut brains) = (numbers.to_vec(), halves.to_vec(), brains.to_vec());
            let changes = [
                Change::Scale(0.3),
                Change::Clamp { low: -1e3, high: 1e4 },
                Change::Zero,
                Change::Clamp { low: -1e30, high: 1e30 },
                Change::Scale(7.0),
            ];
            let lens = [GRAIN, 3 * GRAIN, 1, 7 * GRAIN + LANES + 1, GRAIN - 1, LANES, GRAIN + 1];
            let mut rests = (&mut numbers[1..], &mut halves[1..], &mut brains[1..]);
            let mut pieces = Vec::new();
            for (i, len) in lens.into_iter().cycle().take(count).enumerate() {
                let piece = match i % 3 {
                    0 => ElementsMut::F32(rests.0.split_off_mut(..len).unwrap()),
                    1 => ElementsMut::F16(rests.1.split_off_mut(..len).unwrap()),
                    _ => ElementsMut::Bf16(rests.2.split_off_mut(..len).unwrap()),
                };
                pieces.push((piece, changes[i % changes.len()]));
            }
            Changing { pieces: &mut pieces, walk }.run::<I>();
            (bits(&numbers), bits(&halves), bits(&brains))
        }
    }

    #[test]
    fn every_walk_and_instruction_set_gives_the_same_bits() {
        let mut numbers = numbers(20 * GRAIN);
        numbers.iter_mut().step_by(61).zip(special(20 * GRAIN)).for_each(|(x, special)| *x = special);
        let halves: Vec<_> = numbers.iter().map(|&x| f16::from_f32(x / 1e10)).collect();
        let brains: Vec<_> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
        for count in [0, 1, 2, 7, 8, 9, 17] {
            let changed = |walk| on_every_instruction_set(|| Copied(&numbers, &halves, &brains, walk, count));
            let outputs: Vec<_> = Walk::many().flat_map(changed).collect();
            assert!(outputs.iter().all(|output| *output == outputs[0]), "{count} pieces");
        }
    }
}
