//! Which piece goes where: gradients are halved again and again, and the halves run side by side.
//!
//! Where to halve follows from the lengths of the gradients alone, never from the number of threads, and the halves
//! of a sum are added left to right: the bits are the same on any machine. Nothing is allocated.

use super::{Measured, kernels};

/// The elements (64 KiB) that one call of a kernel gets; a gradient is cut at multiples of it.
const PIECE: usize = 1 << 14;

/// The elements (1 MiB) that are not worth handing to another thread.
const TASK: usize = 1 << 18;

/// Sum of squares and largest magnitude of all gradients.
pub(super) fn measure<G: AsRef<[f32]> + Sync>(gradients: &[G]) -> Measured {
    let len = gradients.iter().map(|gradient| gradient.as_ref().len()).sum();
    if let [gradient] = gradients {
        measure_one(gradient.as_ref())
    } else if len <= TASK {
        gradients.iter().map(|gradient| measure_one(gradient.as_ref())).fold(Measured::NOTHING, Measured::and)
    } else {
        let (left, right) = gradients.split_at(gradients.len() / 2);
        let (left, right) = join(len, || measure(left), || measure(right));
        left.and(right)
    }
}

fn measure_one(gradient: &[f32]) -> Measured {
    if gradient.len() <= PIECE {
        kernels::measure(gradient)
    } else {
        let (left, right) = gradient.split_at(middle(gradient.len()));
        let (left, right) = join(gradient.len(), || measure_one(left), || measure_one(right));
        left.and(right)
    }
}

/// Hands every piece of every gradient to `kernel`, once.
pub(super) fn for_each(gradients: &mut [&mut [f32]], kernel: &(impl Fn(&mut [f32]) + Sync)) {
    let len = gradients.iter().map(|gradient| gradient.len()).sum();
    if let [gradient] = gradients {
        for_each_in(gradient, kernel);
    } else if len <= TASK {
        for gradient in gradients {
            kernel(gradient);
        }
    } else {
        let (left, right) = gradients.split_at_mut(gradients.len() / 2);
        join(len, || for_each(left, kernel), || for_each(right, kernel));
    }
}

fn for_each_in(gradient: &mut [f32], kernel: &(impl Fn(&mut [f32]) + Sync)) {
    let len = gradient.len();
    if len <= TASK {
        kernel(gradient);
    } else {
        let (left, right) = gradient.split_at_mut(middle(len));
        join(len, || for_each_in(left, kernel), || for_each_in(right, kernel));
    }
}

/// The middle of a gradient, at the end of a piece.
fn middle(len: usize) -> usize {
    (len / 2).next_multiple_of(PIECE)
}

/// Both results, computed side by side if `len` elements are worth it.
fn join<A: Send, B: Send>(
    len: usize,
    left: impl FnOnce() -> A + Send,
    right: impl FnOnce() -> B + Send,
) -> (A, B) {
    if len > TASK { rayon::join(left, right) } else { (left(), right()) }
}

/// See [`cpu::threads`](super::threads).
pub(super) fn threads() -> usize {
    rayon::current_num_threads()
}

/// What stands in for rayon where there is none.
#[cfg(not(feature = "rayon"))]
mod rayon {
    pub(super) fn join<A, B>(left: impl FnOnce() -> A, right: impl FnOnce() -> B) -> (A, B) {
        (left(), right())
    }

    pub(super) fn current_num_threads() -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    /// Big, small and empty gradients that are cut everywhere, and whose sum shows another order of addition.
    fn gradients() -> Vec<Vec<f32>> {
        let lens = [0, 3 * TASK + 17, 1, TASK + 1, 0, PIECE].into_iter().chain((0..900).map(|i| i % 700));
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
        assert_eq!(measure(&gradients).squares.to_bits(), 4_959_021_074_054_072_397);
        // Only if another order gives other bits does the line above say anything.
        gradients.reverse();
        assert_ne!(measure(&gradients).squares.to_bits(), 4_959_021_074_054_072_397);
    }

    #[test]
    #[cfg(feature = "rayon")]
    fn the_bits_do_not_depend_on_the_threads() {
        let gradients = gradients();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                assert_eq!(super::threads(), threads);
                measure(&gradients)
            })
        };
        let alone = with(1);
        assert!([2, 3, 7].into_iter().all(|threads| (0..5).all(|_| with(threads) == alone)));
    }

    #[test]
    fn measures_gradients_cut_anywhere() {
        let numbers: Vec<f32> = (0..2 * TASK + 3).map(|i| (i * 7919 % 2003) as f32 - 1001.0).collect();
        for around in [PIECE, 2 * PIECE, 3 * PIECE, TASK, TASK + PIECE, 2 * TASK] {
            for len in around - 1..=around + 1 {
                let gradient = &numbers[..len];
                let found = measure(&[gradient]);
                // Integers this small add up exactly, in any order.
                let squares: f64 = gradient.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                assert_eq!(found.squares, squares, "{len} elements");
                assert_eq!(found.largest, reference::max_magnitude(&[gradient]).to_bits(), "{len} elements");
            }
        }
    }

    #[test]
    fn visits_every_element_once() {
        let mut gradients: Vec<Vec<f32>> =
            gradients().iter().map(|gradient| vec![0.0; gradient.len()]).collect();
        let mut borrowed: Vec<&mut [f32]> = gradients.iter_mut().map(Vec::as_mut_slice).collect();
        for_each(&mut borrowed, &|piece| piece.iter_mut().for_each(|x| *x += 1.0));
        assert!(gradients.iter().flatten().all(|&x| x == 1.0));
    }
}
