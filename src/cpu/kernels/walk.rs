//! The order in which a thread walks through memory: several streams in step, each with a hint ahead.

use std::sync::OnceLock;

use super::Isa;

/// The elements that a loop is unrolled for. All of a walk but the ends of pieces are multiples of it.
pub(super) const GRAIN: usize = 128;

/// The bytes of a cache line.
pub(super) const LINE: usize = 64;

/// How a thread walks through its pieces. This decides how fast memory arrives, never a bit of a result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// How many places of memory are read in turn.
    streams: usize,
    /// How far ahead of each stream memory is asked for, in bytes.
    ahead: usize,
}

/// One of the streams: pieces one after the other.
pub(super) trait Stream {
    /// Works on the next [`step`](Walk::step), or on what a piece has left of it. Returns false at the end of the stream.
    fn step<I: Isa>(&mut self, walk: Walk) -> bool;
}

impl Walk {
    /// The fastest of those that a loop of the norm alone tried on AMD's Zen 3.
    const AMD: Self = Self { streams: 4, ahead: 1 << 10 };

    /// The fastest on Intel's Xeons, and what other processors get.
    const INTEL: Self = Self { streams: 8, ahead: 1 << 10 };

    /// The fastest on this machine, as far as the processor's vendor tells.
    pub(super) fn here() -> Self {
        static HERE: OnceLock<Walk> = OnceLock::new();
        *HERE.get_or_init(|| if &vendor() == b"AuthenticAMD" { Self::AMD } else { Self::INTEL })
    }

    /// Walks to compare, the plainest first.
    #[cfg(test)]
    pub(super) fn many() -> impl Iterator<Item = Self> {
        (1..10).map(|streams| Self { streams, ahead: 1 << 10 }).chain([Self::AMD, Self::INTEL, Self::here()])
    }

    /// How many of `pieces` belong to one stream.
    pub(super) fn share(self, pieces: usize) -> usize {
        pieces.div_ceil(self.streams).max(1)
    }

    /// How many elements of a size are taken of one stream before the next stream's turn. Few enough that the loads of
    /// several streams overlap, enough that a turn costs little: those of 16 bits wait for arithmetic sooner than for
    /// memory, so that theirs are longer.
    #[inline(always)]
    pub(super) const fn step(element_size: usize) -> usize {
        if element_size == size_of::<f32>() { GRAIN } else { 4 * GRAIN }
    }

    /// Walks through all streams, in step.
    #[inline(always)]
    pub(super) fn through<I: Isa>(self, streams: &mut [impl Stream]) {
        let mut any = true;
        while any {
            any = false;
            for stream in &mut *streams {
                any |= stream.step::<I>(self);
            }
        }
    }

    /// Asks for the memory that comes after a block of at most a cache line; whether there is any does not matter.
    #[inline(always)]
    pub(super) fn prefetch_after<E>(self, block: &[E]) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let address = block.as_ptr().cast::<u8>().wrapping_add(self.ahead);
            #[expect(unsafe_code, reason = "an intrinsic that takes a pointer")]
            // SAFETY: a hint; it reads nothing, and no address is wrong.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(address.cast());
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = block;
    }
}

/// What the processor says of its vendor.
#[cfg(target_arch = "x86_64")]
fn vendor() -> [u8; 12] {
    // Safe in newer versions of Rust only.
    #[allow(unsafe_code, unused_unsafe, reason = "every x86-64 processor has this instruction and this leaf")]
    // SAFETY: it has no precondition but that.
    let leaf = unsafe { std::arch::x86_64::__cpuid(0) };
    let mut vendor = [0; 12];
    let registers = [leaf.ebx, leaf.edx, leaf.ecx];
    vendor
        .as_chunks_mut()
        .0
        .iter_mut()
        .zip(registers)
        .for_each(|(four, register)| *four = register.to_le_bytes());
    vendor
}

#[cfg(not(target_arch = "x86_64"))]
fn vendor() -> [u8; 12] {
    [0; 12]
}
