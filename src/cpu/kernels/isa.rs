//! Instruction sets, and kernels that are compiled once for each.

use half::{bf16, f16};

use super::element::Element;

/// The number of elements in a block. Each lane of a block has its own accumulator.
pub(super) const LANES: usize = 16;

/// A loop that is compiled once per instruction set. `run` must be `#[inline(always)]`.
pub(super) trait Kernel {
    type Output;
    fn run<I: Isa>(self) -> Self::Output;
}

/// An instruction set. It decides the vector width and the instructions. Every operation here has one correct result,
/// so that all instruction sets give the same bits.
pub(super) trait Isa {
    /// Runs a kernel that is compiled for this instruction set as a separate function. Compilers vectorise several
    /// small functions better than one large function.
    fn run<K: Kernel>(kernel: K) -> K::Output;

    /// Computes `sum + x²`. The square of an f32 is exact in f64, so a fused multiply-add rounds like a multiplication
    /// followed by an addition.
    fn add_square(sum: f64, x: f32) -> f64;

    fn widen_f16(block: &[f16; LANES]) -> [f32; LANES];
    fn widen_bf16(block: &[bf16; LANES]) -> [f32; LANES];
    fn narrow_to_f16(wide: [f32; LANES]) -> [f16; LANES];
}

/// The instructions that every processor of the target architecture has.
pub(super) struct Baseline;

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
        // `map` does not vectorise here.
        let mut wide = [0.0; LANES];
        wide.iter_mut().zip(block).for_each(|(wide, x)| *wide = x.widen());
        wide
    }

    #[inline(always)]
    fn narrow_to_f16(wide: [f32; LANES]) -> [f16; LANES] {
        wide.map(f16::narrow)
    }
}

/// Converts blocks of elements with the instructions of an instruction set.
pub(super) trait BlockElement: Element {
    /// Converts a block to f32; see [`Element::widen`].
    #[inline(always)]
    fn widen_block<I: Isa>(block: &[Self; LANES]) -> [f32; LANES] {
        // `map` does not vectorise here.
        let mut wide = [0.0; LANES];
        wide.iter_mut().zip(block).for_each(|(wide, x)| *wide = x.widen());
        wide
    }

    /// Rounds a block to the element type; see [`Element::narrow`].
    #[inline(always)]
    fn narrow_block<I: Isa>(wide: [f32; LANES]) -> [Self; LANES] {
        let mut block = [Self::narrow(0.0); LANES];
        block.iter_mut().zip(wide).for_each(|(x, wide)| *x = Self::narrow(wide));
        block
    }
}

impl BlockElement for f32 {}

impl BlockElement for f16 {
    #[inline(always)]
    fn widen_block<I: Isa>(block: &[Self; LANES]) -> [f32; LANES] {
        I::widen_f16(block)
    }

    #[inline(always)]
    fn narrow_block<I: Isa>(wide: [f32; LANES]) -> [Self; LANES] {
        I::narrow_to_f16(wide)
    }
}

impl BlockElement for bf16 {
    #[inline(always)]
    fn widen_block<I: Isa>(block: &[Self; LANES]) -> [f32; LANES] {
        I::widen_bf16(block)
    }
}
