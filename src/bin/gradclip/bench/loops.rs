//! The CPU's rooflines: loops over all cores that only read, write back what they read, or copy.

use std::array;
use std::hint::black_box;

use rayon::prelude::*;

/// Bytes that one thread takes at a time; less is not worth another thread's waking up.
const PIECE: usize = 1 << 20;
/// A row of a cache.
const ROW: usize = 8;
/// How many places of a piece are read side by side: more than one keeps a core waiting less.
const STREAMS: usize = 4;
/// How far ahead memory is asked for, in bytes: more than a page, with which the processor's own prefetching ends.
const AHEAD: usize = 6 << 10;

/// How memory is walked through. Which is quickest depends on the machine and the size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Walk {
    #[default]
    Plain,
    /// [`STREAMS`] at a time.
    Streams,
    /// Asking for what lies [`AHEAD`].
    Prefetched,
}

impl Walk {
    pub(crate) const ALL: [Self; 3] = [Self::Plain, Self::Streams, Self::Prefetched];
}

/// All words of some memory, folded into one so that none need not be read.
pub(crate) fn read(memory: &[u8], walk: Walk) -> u64 {
    let fold = match walk {
        Walk::Plain => fold_streams::<1>,
        Walk::Streams => fold_streams::<STREAMS>,
        Walk::Prefetched => fold_prefetched,
    };
    let pieces = memory.par_chunks(PIECE).map(|piece| fold(bytemuck::cast_slice(piece)));
    pieces.reduce(|| 0, |all, piece| all ^ piece)
}

fn fold_streams<const STREAMS: usize>(words: &[u64]) -> u64 {
    let len = words.len() / STREAMS / ROW * ROW;
    let streams: [&[[u64; ROW]]; STREAMS] =
        array::from_fn(|stream| words[stream * len..][..len].as_chunks().0);
    let mut sums = [[0; ROW]; STREAMS];
    for row in 0..len / ROW {
        for (sums, stream) in sums.iter_mut().zip(&streams) {
            fold_row(sums, &stream[row]);
        }
    }
    sums.as_flattened().iter().chain(&words[STREAMS * len..]).fold(0, |all, word| all ^ word)
}

fn fold_prefetched(words: &[u64]) -> u64 {
    let (rows, rest) = words.as_chunks::<{ STREAMS * ROW }>();
    let mut sums = [[0; ROW]; STREAMS];
    for row in rows {
        for (sums, row) in sums.iter_mut().zip(row.as_chunks().0) {
            prefetch(row);
            fold_row(sums, row);
        }
    }
    sums.as_flattened().iter().chain(rest).fold(0, |all, word| all ^ word)
}

fn fold_row(sums: &mut [u64; ROW], row: &[u64; ROW]) {
    for (sum, word) in sums.iter_mut().zip(row) {
        *sum ^= word;
    }
}

/// Reads and writes all of some memory, and leaves it as it is: the mask is 0, which the compiler cannot know.
pub(crate) fn in_place(memory: &mut [u8], walk: Walk) {
    let mask = black_box(0_u64);
    memory.par_chunks_mut(PIECE).for_each(|piece| {
        let (rows, rest) = bytemuck::cast_slice_mut::<_, u64>(piece).as_chunks_mut::<ROW>();
        match walk {
            Walk::Plain => rows.iter_mut().for_each(|row| mask_row(row, mask)),
            Walk::Prefetched => rows.iter_mut().for_each(|row| {
                prefetch(row);
                mask_row(row, mask);
            }),
            Walk::Streams => {
                let len = rows.len().div_ceil(STREAMS).max(1);
                let mut streams = rows.chunks_mut(len);
                let mut streams: [_; STREAMS] = array::from_fn(|_| streams.next().unwrap_or_default());
                for row in 0..len {
                    streams
                        .iter_mut()
                        .filter_map(|stream| stream.get_mut(row))
                        .for_each(|row| mask_row(row, mask));
                }
            }
        }
        for word in rest {
            *word ^= mask;
        }
    });
}

fn mask_row(row: &mut [u64; ROW], mask: u64) {
    for word in row {
        *word ^= mask;
    }
}

pub(crate) fn copy(source: &[u8], target: &mut [u8]) {
    let pieces = source.par_chunks(PIECE).zip(target.par_chunks_mut(PIECE));
    pieces.for_each(|(source, target)| target.copy_from_slice(source));
}

/// Asks for the memory that lies ahead, which need not exist, as far as the second cache.
#[inline(always)]
fn prefetch(row: &[u64; ROW]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        #[expect(unsafe_code, reason = "an intrinsic that takes a pointer")]
        // SAFETY: a hint; it reads nothing, and no address is wrong.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(row.as_ptr().wrapping_byte_add(AHEAD).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_walk_touches_all_and_changes_nothing() {
        for len in [0, 1, ROW, 5 * ROW + 3, PIECE / 8 + 31 * ROW + 1] {
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
