//! The CPU rooflines: multi-threaded loops that read all bytes, read them and write them back, or copy them.

use std::hint::black_box;

use rayon::prelude::*;

/// The bytes that one thread processes at a time. Fewer bytes are not worth waking another thread.
const CHUNK_BYTES: usize = 1 << 20;
/// The words in a cache line.
const LINE: usize = 8;
/// The words (512 B) of one stream that a thread processes before it turns to the next stream.
const GRAIN: usize = 64;

/// How a thread traverses its chunk. The fastest walk depends on the machine and the size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// The number of equal parts of the chunk between which the thread alternates.
    streams: usize,
    prefetch: Prefetch,
}

/// The prefetch target and distance, in bytes.
#[derive(Clone, Copy, Debug)]
enum Prefetch {
    Nothing,
    ToFirstCache(usize),
    ToSecondCache(usize),
}

impl Walk {
    /// The fastest walks of the measured machines, and the plain loop.
    pub(crate) const ALL: [Self; 5] = [
        Self { streams: 1, prefetch: Prefetch::Nothing },
        Self { streams: 1, prefetch: Prefetch::ToSecondCache(6 << 10) },
        Self { streams: 4, prefetch: Prefetch::Nothing },
        Self { streams: 4, prefetch: Prefetch::ToFirstCache(1 << 10) },
        Self { streams: 8, prefetch: Prefetch::ToFirstCache(1 << 10) },
    ];

    /// Returns the start of each grain in traversal order, and the start of the remainder that fills no grain.
    fn grains(self, words: usize) -> (impl Iterator<Item = usize>, usize) {
        let len = words / self.streams / GRAIN * GRAIN;
        let starts = (0..len).step_by(GRAIN);
        (
            starts.flat_map(move |start| (0..self.streams).map(move |stream| stream * len + start)),
            self.streams * len,
        )
    }

    /// Prefetches the memory after a grain. The address may lie past the end.
    #[inline]
    fn prefetch_after(self, grain: &[u64]) {
        #[cfg(target_arch = "x86_64")]
        for line in grain.as_chunks::<LINE>().0 {
            use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
            let after = |bytes| line.as_ptr().wrapping_byte_add(bytes).cast();
            #[expect(unsafe_code, reason = "an intrinsic that takes a pointer")]
            // SAFETY: a prefetch is a hint: it does not access memory, and every address is valid.
            unsafe {
                match self.prefetch {
                    Prefetch::Nothing => {}
                    Prefetch::ToFirstCache(bytes) => _mm_prefetch::<_MM_HINT_T0>(after(bytes)),
                    Prefetch::ToSecondCache(bytes) => _mm_prefetch::<_MM_HINT_T1>(after(bytes)),
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = grain;
    }
}

/// Reads all words of `memory` and returns their XOR, so that the compiler keeps every load.
pub(crate) fn read(memory: &[u8], walk: Walk) -> u64 {
    let chunks = memory.par_chunks(CHUNK_BYTES).map(|chunk| fold(bytemuck::cast_slice(chunk), walk));
    chunks.reduce(|| 0, |all, chunk| all ^ chunk)
}

fn fold(words: &[u64], walk: Walk) -> u64 {
    let (grains, rest) = walk.grains(words.len());
    let mut sums = [0; LINE];
    for start in grains {
        let grain = &words[start..][..GRAIN];
        walk.prefetch_after(grain);
        for line in grain.as_chunks::<LINE>().0 {
            for (sum, word) in sums.iter_mut().zip(line) {
                *sum ^= word;
            }
        }
    }
    sums.iter().chain(&words[rest..]).fold(0, |all, word| all ^ word)
}

/// Reads and rewrites all words of `memory` unchanged: the mask is 0, but opaque to the compiler.
pub(crate) fn in_place(memory: &mut [u8], walk: Walk) {
    let mask = black_box(0_u64);
    memory.par_chunks_mut(CHUNK_BYTES).for_each(|chunk| {
        let words: &mut [u64] = bytemuck::cast_slice_mut(chunk);
        let (grains, rest) = walk.grains(words.len());
        for start in grains {
            let grain = &mut words[start..][..GRAIN];
            walk.prefetch_after(grain);
            mask_all(grain, mask);
        }
        mask_all(&mut words[rest..], mask);
    });
}

#[inline]
fn mask_all(words: &mut [u64], mask: u64) {
    for word in words {
        *word ^= mask;
    }
}

/// Copies `source` to `target`, which has the same length.
pub(crate) fn copy(source: &[u8], target: &mut [u8]) {
    let chunks = source.par_chunks(CHUNK_BYTES).zip(target.par_chunks_mut(CHUNK_BYTES));
    chunks.for_each(|(source, target)| target.copy_from_slice(source));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_walk_reads_all_words_and_changes_none() {
        for len in [0, 1, GRAIN, 5 * GRAIN + 3, CHUNK_BYTES / 8 + 31 * GRAIN + 1] {
            let words: Vec<u64> = (0..len as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
            let all = words.iter().fold(0, |all, word| all ^ word);
            for walk in Walk::ALL {
                assert_eq!(read(bytemuck::cast_slice(&words), walk), all, "{len}, {walk:?}");
                let mut same = words.clone();
                in_place(bytemuck::cast_slice_mut(&mut same), walk);
                assert_eq!(same, words, "{len}, {walk:?}");
            }
            let mut copied = vec![0; len];
            copy(bytemuck::cast_slice(&words), bytemuck::cast_slice_mut(&mut copied));
            assert_eq!(copied, words);
        }
    }
}
