//! The inner loops: some pieces of gradients, on one thread.
//!
//! Each loop is written once, over lanes that are independent of each other, and compiled once per instruction set and
//! type of element. An instruction set decides how many lanes an instruction holds, never what comes of a lane, and
//! Rust fuses no multiplication with an addition unasked: the bits agree.
#![expect(
    clippy::inline_always,
    reason = "only what is inlined is compiled for the instruction set of its caller"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
mod change;
mod measure;
mod walk;

pub(super) use change::{Change, change};
use half::{bf16, f16};
pub(super) use measure::{Counts, count, measure};

use super::element::Element as _;

/// How many elements are looked at side by side, each in a lane of its own.
pub(super) const LANES: usize = 16;

/// A loop that is to be compiled for several instruction sets, and therefore inlined into each of its callers.
pub(super) trait Kernel {
    type Output;
    fn run<I: Isa>(self) -> Self::Output;
}

/// An instruction set that loops are compiled for. It decides how many lanes an instruction holds, and by which
/// instructions; of what stands here each has but one right result.
pub(super) trait Isa {
    /// Runs a kernel that is compiled for it, as a function of its own: of one that does many things compilers vectorise
    /// less.
    fn run<K: Kernel>(kernel: K) -> K::Output;

    /// `sum + x²` of an x that is an f32. Its square is exact in f64, so that there is one rounding either way.
    fn add_square(sum: f64, x: f32) -> f64;

    fn widen_f16(block: &[f16; LANES]) -> [f32; LANES];
    fn widen_bf16(block: &[bf16; LANES]) -> [f32; LANES];
    fn narrow_to_f16(wide: [f32; LANES]) -> [f16; LANES];
}

/// What every machine has.
struct Baseline;

impl Isa for Baseline {
    #[inline(never)]
    fn run<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }

    #[inline(always)]
    fn add_square(sum: f64, x: f32) -> f64 {
        sum + f64::from(x) * f64::from(x)
    }

    #[inline(always)]
    fn widen_f16(block: &[f16; LANES]) -> [f32; LANES] {
        block.map(f16::widen)
    }

    #[inline(always)]
    fn widen_bf16(block: &[bf16; LANES]) -> [f32; LANES] {
        // Not `map`, of which the compiler makes one element after the other.
        let mut wide = [0.0; LANES];
        wide.iter_mut().zip(block).for_each(|(wide, x)| *wide = x.widen());
        wide
    }

    #[inline(always)]
    fn narrow_to_f16(wide: [f32; LANES]) -> [f16; LANES] {
        wide.map(f16::narrow)
    }
}

/// Runs a kernel with the widest instructions that this machine has.
fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if avx2::is_there() {
        #[expect(unsafe_code, reason = "the compiler cannot know that the machine was asked")]
        // SAFETY: the machine has it.
        return unsafe { avx2::run(kernel) };
    }
    Baseline::run(kernel)
}

#[cfg(test)]
mod tests {
    use super::{Baseline, Kernel};

    pub(super) const SPECIAL: [f32; 8] = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, f32::INFINITY, -f32::INFINITY];

    /// Numbers of both signs over many orders of magnitude, so that another order of addition shows in the sum.
    pub(super) fn numbers(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) * (1_u64 << (i * 31 % 41)) as f32).collect()
    }

    /// What a kernel gives with the instructions that every machine has, and what with AVX2 if this one has it.
    pub(super) fn on_every_instruction_set<K: Kernel>(kernel: impl Fn() -> K) -> Vec<K::Output> {
        let baseline = kernel().run::<Baseline>();
        #[cfg(target_arch = "x86_64")]
        if super::avx2::is_there() {
            #[expect(unsafe_code, reason = "asked just now")]
            // SAFETY: the machine has it.
            return vec![baseline, unsafe { super::avx2::run(kernel()) }];
        }
        vec![baseline]
    }
}
