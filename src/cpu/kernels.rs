//! The inner loops: one piece of one gradient, on one thread.
//!
//! Each loop is written once, over lanes that are independent of each other, and compiled once per instruction set.
//! An instruction set decides how many lanes an instruction holds, never what happens in a lane, and Rust fuses no
//! multiplication with an addition unasked: the bits agree.
#![expect(
    clippy::inline_always,
    reason = "only what is inlined is compiled for the instruction set of its caller"
)]

use super::Measured;

/// Accumulators of a sum: enough to hide the latency of an addition, few enough to stay in registers.
const LANES: usize = 16;

/// How far ahead of the reader, in elements (4 KiB), memory is asked for. The processor's own prefetching ends with a
/// page; this took a norm from 0.6 to 0.97 of the speed of a plain read.
const AHEAD: usize = 1024;

/// How much of a clamp is looked at before it is decided whether to write.
const BLOCK: usize = 256;

/// A loop that is to be compiled for several instruction sets, and therefore inlined into each of its callers.
trait Kernel {
    type Output;
    fn run(self) -> Self::Output;
}

/// The sum of squares of `piece`, and its largest magnitude.
pub(super) fn measure(piece: &[f32]) -> Measured {
    dispatch(Measure(piece))
}

/// `piece · coef`, in place.
pub(super) fn scale(piece: &mut [f32], coef: f32) {
    dispatch(Scale(piece, coef));
}

/// Every element of `piece` to `[low, high]`, in place.
pub(super) fn clamp(piece: &mut [f32], low: f32, high: f32) {
    dispatch(Clamp(piece, low, high));
}

/// Runs a kernel with the widest instructions that this machine has.
fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "the compiler cannot know that the machine was asked")]
        // SAFETY: the machine has AVX2.
        return unsafe { avx2(kernel) };
    }
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

struct Measure<'a>(&'a [f32]);

impl Kernel for Measure<'_> {
    type Output = Measured;

    #[inline(always)]
    fn run(self) -> Measured {
        let mut squares = [0.0; LANES];
        let mut largest = [0; LANES];
        let mut add = |(lane, &x): (usize, &f32)| {
            squares[lane] += f64::from(x) * f64::from(x);
            largest[lane] = largest[lane].max(x.to_bits() & 0x7fff_ffff);
        };
        let (blocks, rest) = self.0.as_chunks::<LANES>();
        for block in blocks {
            prefetch(block.as_ptr().wrapping_add(AHEAD));
            block.iter().enumerate().for_each(&mut add);
        }
        rest.iter().enumerate().for_each(add);
        Measured { squares: squares.iter().sum(), largest: largest.into_iter().fold(0, u32::max) }
    }
}

/// Asks for the memory at `address`, which need not exist.
#[inline(always)]
fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        #[expect(unsafe_code, reason = "an intrinsic that takes a pointer")]
        // SAFETY: a hint; it reads nothing, and no address is wrong.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(address.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

struct Scale<'a>(&'a mut [f32], f32);

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self(piece, coef) = self;
        for x in piece {
            *x *= coef;
        }
    }
}

struct Clamp<'a>(&'a mut [f32], f32, f32);

impl Kernel for Clamp<'_> {
    type Output = ();

    /// Most gradients are within their bounds, and memory that is only read costs half of memory that is written.
    #[inline(always)]
    fn run(self) {
        let Self(piece, low, high) = self;
        // Not `f32::clamp`, which may change the sign of a zero.
        let clamped = |x: f32| {
            let raised = if x < low { low } else { x };
            if raised > high { high } else { raised }
        };
        for block in piece.chunks_mut(BLOCK) {
            // One bit set that differs, rather than `any`: without a branch per element it is several per instruction.
            let changes = block.iter().fold(0, |changes, &x| changes | (x.to_bits() ^ clamped(x).to_bits()));
            if changes != 0 {
                for x in block {
                    *x = clamped(*x);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    /// Numbers of both signs over many orders of magnitude, so that another order of addition shows in the sum.
    fn numbers(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) * (1_u64 << (i * 31 % 41)) as f32).collect()
    }

    const SPECIAL: [f32; 8] = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, f32::INFINITY, -f32::INFINITY];

    fn bits(numbers: &[f32]) -> impl Iterator<Item = u32> {
        numbers.iter().map(|x| x.to_bits())
    }

    #[test]
    fn measures_every_length() {
        let numbers = numbers(5 * LANES);
        for len in 0..=numbers.len() {
            let Measured { squares, largest } = measure(&numbers[..len]);
            let norm = reference::total_norm(&[&numbers[..len]]);
            assert!((squares.sqrt() - norm).abs() <= 1e-14 * norm, "{len} elements: {squares} but {norm}²");
            assert_eq!(largest, reference::max_magnitude(&[&numbers[..len]]).to_bits(), "{len} elements");
        }
    }

    #[test]
    fn sees_one_element_wherever_it_is() {
        let mut piece = [0.0; 3 * LANES + 5];
        for i in 0..piece.len() {
            piece[i] = -3.0;
            let Measured { squares, largest } = measure(&piece);
            assert_eq!((squares, f32::from_bits(largest)), (9.0, 3.0), "at {i}");
            piece[i] = 0.0;
        }
    }

    #[test]
    fn ranks_nan_above_infinity_above_numbers() {
        let rank = |x: f32| measure(&[f32::MAX, x, -f32::MAX]).largest;
        assert_eq!(rank(f32::NEG_INFINITY), f32::INFINITY.to_bits());
        assert!(rank(-f32::NAN) > f32::INFINITY.to_bits());
        assert_eq!(rank(1.0), f32::MAX.to_bits());
    }

    #[test]
    fn clamps_every_length_to_the_bit() {
        for len in (0..20).chain(BLOCK - 2..BLOCK + 3).chain([3 * BLOCK + 7]) {
            for (low, high) in [(-1.0, 1.0), (-0.0, 0.0), (0.0, 0.0), (2.0, f32::INFINITY), (-1e-45, 1e30)] {
                let before: Vec<f32> = SPECIAL.into_iter().chain([f32::NAN]).cycle().take(len).collect();
                let expected: Vec<f32> = before.iter().map(|&x| reference::clamp(x, low, high)).collect();
                let mut after = before;
                clamp(&mut after, low, high);
                assert!(bits(&after).eq(bits(&expected)), "{len} elements to [{low}, {high}]");
            }
        }
    }

    #[test]
    fn clamps_a_block_with_a_single_element_outside() {
        for outside in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK] {
            let mut piece = [0.5; 2 * BLOCK + 1];
            piece[outside] = -7.0;
            clamp(&mut piece, -1.0, 1.0);
            assert_eq!(piece[outside], -1.0, "at {outside}");
            assert_eq!(piece.iter().filter(|&&x| x == 0.5).count(), 2 * BLOCK);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn avx2_gives_the_bits_of_the_baseline() {
        fn wide<K: Kernel>(kernel: K) -> K::Output {
            #[expect(unsafe_code, reason = "asked below")]
            // SAFETY: the test ends early where the machine lacks AVX2.
            unsafe {
                avx2(kernel)
            }
        }
        if !is_x86_feature_detected!("avx2") {
            return;
        }
        let numbers: Vec<f32> = numbers(4099).into_iter().chain(SPECIAL).collect();
        for len in [0, 1, LANES - 1, LANES, LANES + 1, BLOCK + 1, 4099, numbers.len()] {
            let numbers = &numbers[..len];
            assert_eq!(wide(Measure(numbers)), Measure(numbers).run(), "measure {len}");

            let (mut a, mut b) = (numbers.to_vec(), numbers.to_vec());
            wide(Scale(&mut a, 0.3));
            Scale(&mut b, 0.3).run();
            assert!(bits(&a).eq(bits(&b)), "scale {len}");

            wide(Clamp(&mut a, -1e3, 1e6));
            Clamp(&mut b, -1e3, 1e6).run();
            assert!(bits(&a).eq(bits(&b)), "clamp {len}");
        }
    }
}
