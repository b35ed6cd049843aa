//! The order in which a thread reads memory: several interleaved streams, each with software prefetch.

use std::sync::OnceLock;

use super::isa::Isa;

/// The length of an unrolled loop, in f32 elements.
pub(super) const TILE_LEN: usize = 128;

/// The size of a cache line, in bytes.
pub(super) const CACHE_LINE: usize = 64;

/// The memory access pattern of a thread. It affects the speed, never the bits of a result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traversal {
    /// The number of interleaved streams.
    streams: usize,
    /// The prefetch distance of each stream, in bytes.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only x86-64 has a prefetch instruction in stable Rust")
    )]
    prefetch_distance: usize,
}

/// A sequence of chunks that is processed in order.
pub(super) trait Stream {
    /// Processes up to [`turn_len`](Traversal::turn_len) elements of the current chunk. Returns false at the end of the
    /// stream.
    fn advance<I: Isa>(&mut self, traversal: Traversal) -> bool;
}

impl Traversal {
    /// The fastest pattern found for a norm loop on AMD Zen 3.
    const AMD: Self = Self { streams: 4, prefetch_distance: 1 << 10 };

    /// The fastest pattern found on Intel Xeons. It is also the default for other processors.
    const INTEL: Self = Self { streams: 8, prefetch_distance: 1 << 10 };

    /// Returns the pattern for the vendor of this processor.
    pub(super) fn detect() -> Self {
        static DETECTED: OnceLock<Traversal> = OnceLock::new();
        *DETECTED.get_or_init(|| if &vendor() == b"AuthenticAMD" { Self::AMD } else { Self::INTEL })
    }

    /// Lists patterns whose results must agree, starting with a single stream.
    #[cfg(test)]
    pub(super) fn candidates() -> impl Iterator<Item = Self> {
        let with_streams = |streams| Self { streams, prefetch_distance: 1 << 10 };
        (1..10).map(with_streams).chain([Self::AMD, Self::INTEL, Self::detect()])
    }

    /// Returns the number of chunks in each stream.
    pub(super) fn chunks_per_stream(self, chunks: usize) -> usize {
        chunks.div_ceil(self.streams).max(1)
    }

    /// Returns the number of elements that a stream processes per turn. Short turns let the loads of several streams
    /// overlap; long turns amortise switching. Loops over 16-bit elements are bound by arithmetic rather than memory,
    /// so their turns are longer.
    #[inline(always)]
    pub(super) const fn turn_len(element_size: usize) -> usize {
        if element_size == size_of::<f32>() { TILE_LEN } else { 4 * TILE_LEN }
    }

    /// Advances all streams in turn until all have ended.
    #[inline(always)]
    pub(super) fn run<I: Isa>(self, streams: &mut [impl Stream]) {
        let mut any = true;
        while any {
            any = false;
            for stream in &mut *streams {
                any |= stream.advance::<I>(self);
            }
        }
    }

    /// Prefetches the cache line at the prefetch distance from the start of a block. The address may be out of bounds.
    #[inline(always)]
    pub(super) fn prefetch<E>(self, block: &[E]) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let address = block.as_ptr().cast::<u8>().wrapping_add(self.prefetch_distance);
            #[expect(unsafe_code, reason = "an intrinsic that takes a pointer")]
            // SAFETY: a prefetch is a hint that accepts any address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(address.cast());
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = block;
    }
}

/// Returns the vendor string of the CPUID instruction.
#[cfg(target_arch = "x86_64")]
fn vendor() -> [u8; 12] {
    // The intrinsic is safe in newer Rust versions only.
    #[allow(unsafe_code, unused_unsafe, reason = "every x86-64 processor has this instruction and this leaf")]
    // SAFETY: the instruction has no other precondition.
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
