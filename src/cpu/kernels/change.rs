//! The loops that write.

use super::{Isa, Kernel, LANES, dispatch, prefetch_after};
use crate::ClipRecord;
use crate::cpu::element::Element;

/// How much of a clamp is looked at before it is decided whether to write.
const BLOCK: usize = 256;

/// What becomes of every element of a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cpu) enum Change {
    /// It is multiplied by this.
    Scale(f32),
    /// It becomes +0, whatever it was.
    Zero,
    /// It goes to the nearest number in this range.
    Clamp { low: f32, high: f32 },
}

impl Change {
    /// What a record asks for. A factor of 1 would leave every bit as it was.
    pub(in crate::cpu) fn of(record: &ClipRecord) -> Option<Self> {
        match record.factor {
            _ if record.zeroed() => Some(Self::Zero),
            1.0 => None,
            factor => Some(Self::Scale(factor)),
        }
    }
}

/// Changes every element of `piece` in place.
pub(in crate::cpu) fn change<E: Element>(piece: &mut [E], change: Change) {
    match change {
        Change::Scale(factor) => dispatch(Scale(piece, factor)),
        Change::Zero => piece.fill(E::narrow(0.0)),
        Change::Clamp { low, high } => dispatch(Clamp(piece, E::bound(low), E::bound(high))),
    }
}

struct Scale<'a, E>(&'a mut [E], f32);

impl<E: Element> Kernel for Scale<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self(piece, factor) = self;
        let (blocks, rest) = piece.as_chunks_mut::<LANES>();
        for block in blocks {
            prefetch_after(block);
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

struct Clamp<'a, E>(&'a mut [E], E, E);

impl<E: Element> Kernel for Clamp<'_, E> {
    type Output = ();

    /// Most gradients are within their bounds, and memory that is only read costs half of memory that is written.
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self(piece, low, high) = self;
        for block in piece.chunks_mut(BLOCK) {
            block.chunks(LANES).for_each(prefetch_after);
            // One bit set that differs, rather than `any`: without a branch per element it is several per instruction.
            let differences = |all, one: E, other: E| all | one.bits() ^ other.bits();
            // The last block may be shorter, and goes the other way.
            if E::KEEPS_CLAMPED
                && let Ok(block) = <&mut [E; BLOCK]>::try_from(&mut *block)
            {
                let mut clamped = *block;
                for x in &mut clamped {
                    *x = x.clamped(low, high);
                }
                let pairs = block.iter().zip(&clamped);
                let changes = pairs.fold(E::Bits::default(), |all, (x, y)| differences(all, *x, *y));
                if changes != E::Bits::default() {
                    *block = clamped;
                }
                continue;
            }
            let changes =
                block.iter().fold(E::Bits::default(), |all, &x| differences(all, x, x.clamped(low, high)));
            if changes != E::Bits::default() {
                for x in block {
                    *x = x.clamped(low, high);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::tests::{SPECIAL, numbers, on_every_instruction_set};
    use super::*;
    use crate::reference;

    const RANGES: [(f32, f32); 5] =
        [(-1.0, 1.0), (-0.0, 0.0), (0.0, 0.0), (2.0, f32::INFINITY), (-1e-45, 1e30)];

    fn bits<E: Element>(numbers: &[E]) -> Vec<E::Bits> {
        numbers.iter().map(|x| x.bits()).collect()
    }

    fn lengths() -> impl Iterator<Item = usize> {
        (0..20).chain(BLOCK - 2..BLOCK + 3).chain([3 * BLOCK + 7])
    }

    fn special(len: usize) -> impl Iterator<Item = f32> {
        SPECIAL.into_iter().chain([f32::NAN, 7e4, -3.0, 6e-8]).cycle().take(len)
    }

    /// A change of narrow elements is one of the f32 that they are, rounded.
    fn agrees_with_f32<E: Element>(len: usize, how: Change, max: f32) {
        let bound = |x: f32| E::narrow(if x.is_finite() { x.clamp(-max, max) } else { x }).widen();
        let before: Vec<E> = special(len).map(E::narrow).collect();
        let expected: Vec<E::Bits> = before
            .iter()
            .map(|x| match how {
                Change::Scale(factor) => E::narrow(x.widen() * factor).bits(),
                Change::Zero => E::Bits::default(),
                Change::Clamp { .. } if x.widen().is_nan() => x.bits(),
                Change::Clamp { low, high } => {
                    E::narrow(reference::clamp(x.widen(), bound(low), bound(high))).bits()
                }
            })
            .collect();
        let mut after = before;
        change(&mut after, how);
        assert_eq!(bits(&after), expected, "{len} elements, {how:?}");
    }

    #[test]
    fn changes_every_length_and_type_to_the_bit() {
        let clamps = RANGES.map(|(low, high)| Change::Clamp { low, high });
        for how in clamps.into_iter().chain([Change::Zero, Change::Scale(0.3), Change::Scale(0.0)]) {
            for len in lengths() {
                agrees_with_f32::<f32>(len, how, f32::MAX);
                agrees_with_f32::<f16>(len, how, 65504.0);
                agrees_with_f32::<bf16>(len, how, 3.389_531_4e38);
            }
        }
    }

    #[test]
    fn clamps_a_block_with_a_single_element_outside() {
        for outside in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK] {
            let mut piece = [0.5; 2 * BLOCK + 1];
            piece[outside] = -7.0;
            change(&mut piece, Change::Clamp { low: -1.0, high: 1.0 });
            assert_eq!(piece[outside], -1.0, "at {outside}");
            assert_eq!(piece.iter().filter(|&&x| x == 0.5).count(), 2 * BLOCK);
        }
    }

    #[test]
    fn avx2_gives_the_bits_of_the_baseline() {
        /// The kernel, with what it has changed as its output.
        struct Changing<E>(Vec<E>, Change);
        impl<E: Element> Kernel for Changing<E> {
            type Output = Vec<E::Bits>;
            #[inline(always)]
            fn run<I: Isa>(mut self) -> Vec<E::Bits> {
                match self.1 {
                    Change::Scale(factor) => Scale(&mut self.0, factor).run::<I>(),
                    Change::Clamp { low, high } => {
                        Clamp(&mut self.0, E::bound(low), E::bound(high)).run::<I>();
                    }
                    Change::Zero => {}
                }
                bits(&self.0)
            }
        }
        fn check<E: Element>(numbers: &[E]) {
            for how in [Change::Scale(0.3), Change::Clamp { low: -1e3, high: 1e4 }] {
                for len in [0, 1, 15, 16, 17, BLOCK + 1, 4099, numbers.len()] {
                    let outputs = on_every_instruction_set(|| Changing(numbers[..len].to_vec(), how));
                    assert!(outputs.iter().all(|output| *output == outputs[0]), "{len} elements, {how:?}");
                }
            }
        }
        let numbers: Vec<f32> = numbers(4099).into_iter().chain(SPECIAL).collect();
        check(&numbers);
        check(&numbers.iter().map(|&x| f16::from_f32(x / 1e10)).collect::<Vec<_>>());
        check(&numbers.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
    }
}
