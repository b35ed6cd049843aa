//! Which piece goes where: gradients are halved again and again, and the halves run side by side.
//!
//! Where to halve follows from the lengths of the gradients alone, never from the number of threads, and the halves
//! of a sum are added left to right: the bits are the same on any machine. Each piece of work sets the floating-point modes
//! that it needs, on whatever thread it runs; none of them is held while a thread may take up somebody else's work.

#[cfg(feature = "rayon")]
use std::sync::OnceLock;

use super::gradient::{Elements, ElementsMut};
use super::kernels::{self, Change};
use crate::float_state::in_default_modes;

/// The elements (64 KiB of f32) that have a sum of their own; a gradient is cut at multiples of it.
pub(super) const PIECE: usize = 1 << 14;

/// The elements (1 MiB of f32) that are not worth waking another thread for.
const ALONE: usize = 1 << 18;

/// The fewest elements (256 KiB of f32) that a thread takes at a time once several are awake.
const TASK: usize = 1 << 16;

/// The tasks of each thread, if they are not too small: enough that all threads end together.
const TASKS: usize = 8;

/// How many elements are one task where there are `len` in all. The more, the farther apart are the streams in which a thread
/// reads it, up to [`ALONE`].
fn task(len: usize) -> usize {
    if len > ALONE { (len / (TASKS * threads())).clamp(TASK, ALONE) } else { ALONE }
}

/// The most elements whose findings are put together one after the other: the order of a sum follows from it.
const IN_A_ROW: usize = 1 << 18;

/// Something that is found piece by piece, and put together.
pub(super) trait Reduction: Sync {
    type Output: Copy + Send;

    /// What is found in no elements at all.
    const NOTHING: Self::Output;

    /// What is found in each of the pieces.
    fn pieces(&self, pieces: &[Elements<'_>]) -> Vec<Self::Output>;

    /// Both together. In this order: an f64 sum depends on it.
    fn and(&self, one: Self::Output, next: Self::Output) -> Self::Output;

    /// What was found in all pieces of a gradient, as something that was found in a gradient.
    fn gradient(&self, whole: Self::Output) -> Self::Output {
        whole
    }
}

/// What is found in each gradient.
pub(super) fn reduce<R: Reduction>(gradients: &[Elements<'_>], reduction: &R) -> Vec<R::Output> {
    let mut found = vec![R::NOTHING; gradients.len()];
    let task = task(gradients.iter().map(Elements::len).sum());
    reduce_into(gradients, &mut found, reduction, task);
    found
}

fn reduce_into<R: Reduction>(
    gradients: &[Elements<'_>],
    found: &mut [R::Output],
    reduction: &R,
    task: usize,
) {
    let len: usize = gradients.iter().map(Elements::len).sum();
    if len <= task {
        in_default_modes(|| {
            let pieces: Vec<_> = gradients.iter().flat_map(|gradient| gradient.pieces(PIECE)).collect();
            let mut of_pieces = &reduction.pieces(&pieces)[..];
            for (gradient, found) in gradients.iter().zip(found) {
                let (own, after) = of_pieces.split_at(gradient.len().div_ceil(PIECE));
                *found = reduction.gradient(whole(gradient.len(), own, reduction));
                of_pieces = after;
            }
        });
    } else if let [gradient] = gradients {
        found[0] = reduction.gradient(reduce_one(*gradient, reduction, task));
    } else {
        let middle = gradients.len() / 2;
        let (left, right) = gradients.split_at(middle);
        let (left_found, right_found) = found.split_at_mut(middle);
        let right = || reduce_into(right, right_found, reduction, task);
        join(|| reduce_into(left, left_found, reduction, task), right);
    }
}

fn reduce_one<R: Reduction>(gradient: Elements<'_>, reduction: &R, task: usize) -> R::Output {
    if gradient.len() <= task {
        in_default_modes(|| {
            let pieces: Vec<_> = gradient.pieces(PIECE).collect();
            whole(gradient.len(), &reduction.pieces(&pieces), reduction)
        })
    } else {
        let (left, right) = gradient.split_at(middle(gradient.len()));
        let (left, right) = join(|| reduce_one(left, reduction, task), || reduce_one(right, reduction, task));
        in_default_modes(|| reduction.and(left, right))
    }
}

/// What is found in `len` elements of a gradient, of what was found in their pieces.
pub(super) fn whole<R: Reduction>(len: usize, pieces: &[R::Output], reduction: &R) -> R::Output {
    match pieces {
        [] => R::NOTHING,
        [only] => *only,
        _ => {
            let middle = middle(len);
            let (left, right) = pieces.split_at(middle / PIECE);
            reduction.and(whole(middle, left, reduction), whole(len - middle, right, reduction))
        }
    }
}

/// What is found in some gradients together, of which these are the lengths and the findings. It depends on these
/// alone, not on what other gradients were read at the same time.
pub(super) fn together<R: Reduction>(found: &[(usize, R::Output)], reduction: &R) -> R::Output {
    if let [(_, only)] = found {
        *only
    } else if found.iter().map(|(len, _)| len).sum::<usize>() <= IN_A_ROW {
        found.iter().fold(R::NOTHING, |all, &(_, next)| reduction.and(all, next))
    } else {
        let (left, right) = found.split_at(found.len() / 2);
        reduction.and(together(left, reduction), together(right, reduction))
    }
}

/// Changes every element of every gradient, once.
pub(super) fn change(gradients: &mut [(ElementsMut<'_>, Change)]) {
    change_all(gradients, task(gradients.iter().map(|(elements, _)| elements.len()).sum()));
}

fn change_all(gradients: &mut [(ElementsMut<'_>, Change)], task: usize) {
    let len: usize = gradients.iter().map(|(elements, _)| elements.len()).sum();
    if len <= task {
        let mut pieces = Vec::with_capacity(gradients.len() + len / PIECE);
        for (elements, change) in gradients {
            pieces.extend(elements.reborrow().pieces(PIECE).into_iter().map(|piece| (piece, *change)));
        }
        in_default_modes(|| kernels::change(&mut pieces));
    } else if let [(elements, change)] = gradients {
        change_one(elements.reborrow(), *change, task);
    } else {
        let (left, right) = gradients.split_at_mut(gradients.len() / 2);
        join(|| change_all(left, task), || change_all(right, task));
    }
}

fn change_one(gradient: ElementsMut<'_>, change: Change, task: usize) {
    let len = gradient.len();
    if len <= task {
        change_all(&mut [(gradient, change)], task);
    } else {
        let (left, right) = gradient.split_at(middle(len));
        join(|| change_one(left, change, task), || change_one(right, change, task));
    }
}

/// The middle of a gradient, at the end of a piece.
fn middle(len: usize) -> usize {
    (len / 2).next_multiple_of(PIECE)
}

/// Both results, computed side by side.
fn join<A: Send, B: Send>(left: impl FnOnce() -> A + Send, right: impl FnOnce() -> B + Send) -> (A, B) {
    #[cfg(feature = "rayon")]
    if has_pool() {
        return rayon::join(left, right);
    }
    (left(), right())
}

/// See [`cpu::threads`](super::threads).
pub(super) fn threads() -> usize {
    #[cfg(feature = "rayon")]
    if has_pool() {
        return rayon::current_num_threads();
    }
    1
}

/// Whether rayon has threads: those of the current pool, or else of the global one.
///
/// Where the system refuses to create threads, every use of the global pool is a panic.
#[cfg(feature = "rayon")]
fn has_pool() -> bool {
    static GLOBAL: OnceLock<bool> = OnceLock::new();
    let has_global = || match rayon::ThreadPoolBuilder::new().build_global() {
        Ok(()) => true,
        // With the system's reason why there can be no threads.
        Err(error) if std::error::Error::source(&error).is_some() => false,
        // Somebody has built the pool before, or has failed to. Only using it tells which.
        Err(_) => std::panic::catch_unwind(rayon::current_num_threads).is_ok(),
    };
    // On the web rayon itself falls back to the calling thread, but only where nobody has tried to build the pool.
    cfg!(target_family = "wasm") || rayon::current_thread_index().is_some() || *GLOBAL.get_or_init(has_global)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::measured::Measured;
    use crate::{NormType, reference};

    fn measure<G: AsRef<[f32]>>(gradients: &[G], norm_type: NormType) -> Measured {
        let elements: Vec<_> = gradients.iter().map(|gradient| Elements::F32(gradient.as_ref())).collect();
        let lens = elements.iter().map(Elements::len);
        together(&lens.zip(reduce(&elements, &norm_type)).collect::<Vec<_>>(), &norm_type)
    }

    /// Big, small and empty gradients that are cut everywhere, and whose sum shows another order of addition.
    fn gradients() -> Vec<Vec<f32>> {
        let lens = [0, 3 * ALONE + 17, 1, ALONE + 1, 0, PIECE].into_iter().chain((0..900).map(|i| i % 700));
        let mut state = 1_u32;
        let mut number = || {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            let magnitude = (1_u32 << (state >> 27)) as f32;
            (state >> 8 & 0xffff) as f32 / 32768.0 * magnitude
        };
        lens.map(|len| (0..len).map(|_| number()).collect()).collect()
    }

    #[test]
    fn the_bits_do_not_depend_on_the_build_or_the_machine() {
        let mut gradients = gradients();
        assert_eq!(measure(&gradients, NormType::L2).sum.to_bits(), 4_959_021_074_054_072_397);
        // Only if another order gives other bits does the line above say anything.
        gradients.reverse();
        assert_ne!(measure(&gradients, NormType::L2).sum.to_bits(), 4_959_021_074_054_072_397);
    }

    #[test]
    #[cfg(feature = "rayon")]
    fn the_bits_do_not_depend_on_the_threads() {
        let gradients = gradients();
        for norm_type in [NormType::L2, NormType::L1, NormType::P(2.5), NormType::P(0.0)] {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    assert_eq!(super::threads(), threads);
                    measure(&gradients, norm_type)
                })
            };
            let alone = with(1);
            assert!(
                [2, 3, 7].into_iter().all(|threads| (0..3).all(|_| with(threads) == alone)),
                "{norm_type:?}"
            );
        }
    }

    #[test]
    fn measures_gradients_cut_anywhere() {
        let numbers: Vec<f32> = (0..2 * ALONE + 3).map(|i| (i * 7919 % 2003) as f32 - 1001.0).collect();
        for around in [PIECE, 2 * PIECE, 3 * PIECE, TASK, ALONE, ALONE + PIECE, 2 * ALONE] {
            for len in around - 1..=around + 1 {
                let gradient = &numbers[..len];
                let found = measure(&[gradient], NormType::L2);
                // Integers this small add up exactly, in any order.
                let squares: f64 = gradient.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                assert_eq!(found.sum, squares, "{len} elements");
                assert_eq!(found.largest, reference::max_magnitude(&[gradient]).to_bits(), "{len} elements");
            }
        }
    }

    #[test]
    fn changes_every_element_once() {
        let mut gradients: Vec<Vec<f32>> =
            gradients().iter().map(|gradient| vec![1.0; gradient.len()]).collect();
        let elements = gradients.iter_mut().map(|gradient| (ElementsMut::F32(gradient), Change::Scale(3.0)));
        change(&mut elements.collect::<Vec<_>>());
        assert!(gradients.iter().flatten().all(|&x| x == 3.0));
    }
}
