//! The CPU's rooflines: loops over all cores that only read, write back what they read, or copy.

use std::hint::black_box;

use rayon::prelude::*;

/// The bytes that one thread takes at a time. Less is not worth waking another thread.
const PIECE: usize = 1 << 20;
/// The words of a cache line.
const LINE: usize = 8;
/// The words (512 B) that are taken of one stream before the next stream's turn.
const GRAIN: usize = 64;

/// How a thread walks through its piece. Which walk is fastest depends on the machine and the size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// How many parts of the piece are walked through side by side.
    streams: usize,
    ahead: Ahead,
}

/// How far ahead memory is asked for, in bytes.
#[derive(Clone, Copy, Debug)]
enum Ahead {
    Nothing,
    ToFirstCache(usize),
    ToSecondCache(usize),
}

impl Walk {
    /// The fastest ones of the machines that were measured, and the plainest.
    pub(crate) const ALL: [Self; 5] = [
        Self { streams: 1, ahead: Ahead::Nothing },
        Self { streams: 1, ahead: Ahead::ToSecondCache(6 << 10) },
        Self { streams: 4, ahead: Ahead::Nothing },
        Self { streams: 4, ahead: Ahead::ToFirstCache(1 << 10) },
        Self { streams: 8, ahead: Ahead::ToFirstCache(1 << 10) },
    ];

    /// Where in `words` a thread goes: the start of every grain in turn, and where the rest starts that fills no grain.
    fn grains(self, words: usize) -> (impl Iterator<Item = usize>, usize) {
        let len = words / self.streams / GRAIN * GRAIN;
        let starts = (0..len).step_by(GRAIN);
        (
            starts.flat_map(move |start| (0..self.streams).map(move |stream| stream * len + start)),
            self.streams * len,
        )
    }

    /// Asks for the memory after a grain, whether or not there is any.
    #[inline]
    fn prefetch_after(self, grain: &[u64]) {
        #[cfg(target_arch = "x86_64")]
        for line in grain.as_chunks::<LINE>().0 {
            use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
            let after = |bytes| line.as_ptr().wrapping_byte_add(bytes).cast();
            #[expect(unsafe_code, reason = "an intrinsic that takes a pointer")]
            // SAFETY: a hint; it reads nothing, and no address is wrong.
            unsafe {
                match self.ahead {
                    Ahead::Nothing => {}
                    Ahead::ToFirstCache(bytes) => _mm_prefetch::<_MM_HINT_T0>(after(bytes)),
                    Ahead::ToSecondCache(bytes) => _mm_prefetch::<_MM_HINT_T1>(after(bytes)),
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = grain;
    }
}

/// All words of some memory, folded into one so that the compiler cannot skip any.
pub(crate) fn read(memory: &[u8], walk: Walk) -> u64 {
    let pieces = memory.par_chunks(PIECE).map(|piece| fold(bytemuck::cast_slice(piece), walk));
    pieces.reduce(|| 0, |all, piece| all ^ piece)
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

/// Reads and writes all of some memory, and leaves it as it is: the mask is 0, which the compiler cannot know.
pub(crate) fn in_place(memory: &mut [u8], walk: Walk) {
    let mask = black_box(0_u64);
    memory.par_chunks_mut(PIECE).for_each(|piece| {
        let words: &mut [u64] = bytemuck::cast_slice_mut(piece);
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

pub(crate) fn copy(source: &[u8], target: &mut [u8]) {
    let pieces = source.par_chunks(PIECE).zip(target.par_chunks_mut(PIECE));
    pieces.for_each(|(source, target)| target.copy_from_slice(source));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_walk_touches_all_and_changes_nothing() {
        for len in [0, 1, GRAIN, 5 * GRAIN + 3, PIECE / 8 + 31 * GRAIN + 1] {
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
