//! Distributes gradients over threads in chunks, and fixes the order in which partial results are combined.
//!
//! Gradients are halved recursively, and the halves run in parallel. The split points and the order of additions depend
//! only on the lengths of the gradients, not on the number of threads, so the bits are the same on every machine. Each
//! task sets the floating-point modes on the thread that runs it, and restores them before that thread can start other
//! work.

#[cfg(feature = "rayon")]
use std::sync::OnceLock;

use super::elements::{Elements, ElementsMut};
use super::kernels::{self, Update};
use crate::float_modes::in_default_modes;

/// The chunk length in elements (64 KiB of f32). Gradients are split only between chunks.
pub(super) const CHUNK_LEN: usize = 1 << 14;

/// The number of elements (1 MiB of f32) up to which waking another thread costs more than it saves. It is also the
/// maximum length of a task.
const SERIAL_THRESHOLD: usize = 1 << 18;

/// The minimum length of a task in elements (256 KiB of f32), if the work is distributed at all.
const MIN_TASK_LEN: usize = 1 << 16;

/// The number of tasks per thread. With several, all threads finish at about the same time.
const TASKS_PER_THREAD: usize = 8;

/// Returns the length of a task for a total of `len` elements. A larger total gives longer tasks, in which a thread
/// reads streams that are farther apart.
fn task_len(len: usize) -> usize {
    if len > SERIAL_THRESHOLD {
        (len / (TASKS_PER_THREAD * threads())).clamp(MIN_TASK_LEN, SERIAL_THRESHOLD)
    } else {
        SERIAL_THRESHOLD
    }
}

/// The number of elements up to which [`combine_gradients`] runs from left to right. The bits of a sum depend on it.
const SEQUENTIAL_LEN: usize = 1 << 18;

/// A reduction that maps chunks to values and combines the values.
pub(super) trait Reduction: Sync {
    type Output: Copy + Send;

    /// The value of an empty input.
    const IDENTITY: Self::Output;

    /// Reduces each chunk separately.
    fn map(&self, chunks: &[Elements<'_>]) -> Vec<Self::Output>;

    /// Combines the values of adjacent elements. The order matters, because sums are rounded.
    fn combine(&self, left: Self::Output, right: Self::Output) -> Self::Output;

    /// Turns the combined value of all chunks of a gradient into the value of the gradient.
    fn finish_gradient(&self, value: Self::Output) -> Self::Output {
        value
    }
}

/// Reduces each gradient separately.
pub(super) fn reduce<R: Reduction>(gradients: &[Elements<'_>], reduction: &R) -> Vec<R::Output> {
    let mut outputs = vec![R::IDENTITY; gradients.len()];
    let task_len = task_len(gradients.iter().map(Elements::len).sum());
    reduce_into(gradients, &mut outputs, reduction, task_len);
    outputs
}

fn reduce_into<R: Reduction>(
    gradients: &[Elements<'_>],
    outputs: &mut [R::Output],
    reduction: &R,
    task_len: usize,
) {
    let len: usize = gradients.iter().map(Elements::len).sum();
    if len <= task_len {
        in_default_modes(|| {
            let chunks: Vec<_> = gradients.iter().flat_map(|gradient| gradient.chunks(CHUNK_LEN)).collect();
            let mut values = &reduction.map(&chunks)[..];
            for (gradient, output) in gradients.iter().zip(outputs) {
                let (values_of_gradient, rest) = values.split_at(gradient.len().div_ceil(CHUNK_LEN));
                let value = combine_chunks(gradient.len(), values_of_gradient, reduction);
                *output = reduction.finish_gradient(value);
                values = rest;
            }
        });
    } else if let [gradient] = gradients {
        outputs[0] = reduction.finish_gradient(reduce_one(*gradient, reduction, task_len));
    } else {
        let middle = gradients.len() / 2;
        let (left, right) = gradients.split_at(middle);
        let (left_outputs, right_outputs) = outputs.split_at_mut(middle);
        let right = || reduce_into(right, right_outputs, reduction, task_len);
        join(|| reduce_into(left, left_outputs, reduction, task_len), right);
    }
}

fn reduce_one<R: Reduction>(gradient: Elements<'_>, reduction: &R, task_len: usize) -> R::Output {
    if gradient.len() <= task_len {
        in_default_modes(|| {
            let chunks: Vec<_> = gradient.chunks(CHUNK_LEN).collect();
            combine_chunks(gradient.len(), &reduction.map(&chunks), reduction)
        })
    } else {
        let (left, right) = gradient.split_at(midpoint(gradient.len()));
        let (left, right) =
            join(|| reduce_one(left, reduction, task_len), || reduce_one(right, reduction, task_len));
        in_default_modes(|| reduction.combine(left, right))
    }
}

/// Combines the chunk values of a gradient, or of a part of one, with `len` elements.
pub(super) fn combine_chunks<R: Reduction>(len: usize, values: &[R::Output], reduction: &R) -> R::Output {
    match values {
        [] => R::IDENTITY,
        [only] => *only,
        _ => {
            let middle = midpoint(len);
            let (left, right) = values.split_at(middle / CHUNK_LEN);
            reduction.combine(
                combine_chunks(middle, left, reduction),
                combine_chunks(len - middle, right, reduction),
            )
        }
    }
}

/// Combines the values of several gradients, each paired with the length of its gradient. The result does not depend on
/// other gradients reduced in the same call.
pub(super) fn combine_gradients<R: Reduction>(values: &[(usize, R::Output)], reduction: &R) -> R::Output {
    if let [(_, only)] = values {
        *only
    } else if values.iter().map(|(len, _)| len).sum::<usize>() <= SEQUENTIAL_LEN {
        values.iter().fold(R::IDENTITY, |all, &(_, next)| reduction.combine(all, next))
    } else {
        let (left, right) = values.split_at(values.len() / 2);
        reduction.combine(combine_gradients(left, reduction), combine_gradients(right, reduction))
    }
}

/// Applies an update to each gradient in place.
pub(super) fn update(gradients: &mut [(ElementsMut<'_>, Update)]) {
    update_all(gradients, task_len(gradients.iter().map(|(elements, _)| elements.len()).sum()));
}

fn update_all(gradients: &mut [(ElementsMut<'_>, Update)], task_len: usize) {
    let len: usize = gradients.iter().map(|(elements, _)| elements.len()).sum();
    if len <= task_len {
        let mut chunks = Vec::with_capacity(gradients.len() + len / CHUNK_LEN);
        for (elements, update) in gradients {
            chunks.extend(elements.reborrow().chunks(CHUNK_LEN).into_iter().map(|chunk| (chunk, *update)));
        }
        in_default_modes(|| kernels::update(&mut chunks));
    } else if let [(elements, update)] = gradients {
        update_one(elements.reborrow(), *update, task_len);
    } else {
        let (left, right) = gradients.split_at_mut(gradients.len() / 2);
        join(|| update_all(left, task_len), || update_all(right, task_len));
    }
}

fn update_one(gradient: ElementsMut<'_>, update: Update, task_len: usize) {
    let len = gradient.len();
    if len <= task_len {
        update_all(&mut [(gradient, update)], task_len);
    } else {
        let (left, right) = gradient.split_at(midpoint(len));
        join(|| update_one(left, update, task_len), || update_one(right, update, task_len));
    }
}

/// Returns the middle of a gradient, rounded up to the end of a chunk.
fn midpoint(len: usize) -> usize {
    (len / 2).next_multiple_of(CHUNK_LEN)
}

/// Runs both closures, in parallel if there is a thread pool.
pub(super) fn join<A: Send, B: Send>(
    left: impl FnOnce() -> A + Send,
    right: impl FnOnce() -> B + Send,
) -> (A, B) {
    #[cfg(feature = "rayon")]
    if has_pool() {
        return rayon::join(left, right);
    }
    (left(), right())
}

/// Returns the maximum number of threads: those of the current rayon pool, or 1.
pub(super) fn threads() -> usize {
    #[cfg(feature = "rayon")]
    if has_pool() {
        return rayon::current_num_threads();
    }
    1
}

/// Returns whether rayon has a usable pool: the current one, or else the global one.
///
/// If the system cannot create threads, rayon panics on every use of the global pool.
#[cfg(feature = "rayon")]
fn has_pool() -> bool {
    static GLOBAL: OnceLock<bool> = OnceLock::new();
    let has_global = || match rayon::ThreadPoolBuilder::new().build_global() {
        Ok(()) => true,
        // The source is the operating system's error: it cannot create threads.
        Err(error) if std::error::Error::source(&error).is_some() => false,
        // The pool was initialised before, perhaps unsuccessfully. Only using it shows whether it works.
        Err(_) => std::panic::catch_unwind(rayon::current_num_threads).is_ok(),
    };
    // On wasm rayon falls back to the calling thread, but only if nothing has tried to build the pool.
    cfg!(target_family = "wasm") || rayon::current_thread_index().is_some() || *GLOBAL.get_or_init(has_global)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::norm_sums::NormSums;
    use crate::cpu::reductions::NormReduction;
    use crate::{NormType, reference};

    fn measure<G: AsRef<[f32]>>(gradients: &[G], norm_type: NormType) -> NormSums {
        let elements: Vec<_> = gradients.iter().map(|gradient| Elements::F32(gradient.as_ref())).collect();
        let (lens, reduction) = (elements.iter().map(Elements::len), NormReduction(norm_type));
        combine_gradients(&lens.zip(reduce(&elements, &reduction)).collect::<Vec<_>>(), &reduction)
    }

    /// Lists large, small and empty gradients that split at every level. Their sum depends on the order of addition.
    fn gradients() -> Vec<Vec<f32>> {
        let lens = [0, 3 * SERIAL_THRESHOLD + 17, 1, SERIAL_THRESHOLD + 1, 0, CHUNK_LEN]
            .into_iter()
            .chain((0..900).map(|i| i % 700));
        let mut state = 1_u32;
        let mut number = || {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            let magnitude = (1_u32 << (state >> 27)) as f32;
            (state >> 8 & 0xffff) as f32 / 32768.0 * magnitude
        };
        lens.map(|len| (0..len).map(|_| number()).collect()).collect()
    }

    #[test]
    fn bits_do_not_depend_on_the_build_or_the_machine() {
        let mut gradients = gradients();
        assert_eq!(measure(&gradients, NormType::L2).sum.to_bits(), 4_959_021_074_054_072_397);
        // The reverse order gives different bits, so the assertion above depends on the order.
        gradients.reverse();
        assert_ne!(measure(&gradients, NormType::L2).sum.to_bits(), 4_959_021_074_054_072_397);
    }

    #[test]
    #[cfg(feature = "rayon")]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let gradients = gradients();
        for norm_type in [NormType::L2, NormType::L1, NormType::P(2.5), NormType::P(0.0)] {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    assert_eq!(super::threads(), threads);
                    measure(&gradients, norm_type)
                })
            };
            let serial = with(1);
            assert!(
                [2, 3, 7].into_iter().all(|threads| (0..3).all(|_| with(threads) == serial)),
                "{norm_type:?}"
            );
        }
    }

    #[test]
    fn measures_gradients_of_any_length() {
        let numbers: Vec<f32> =
            (0..2 * SERIAL_THRESHOLD + 3).map(|i| (i * 7919 % 2003) as f32 - 1001.0).collect();
        for around in [
            CHUNK_LEN,
            2 * CHUNK_LEN,
            3 * CHUNK_LEN,
            MIN_TASK_LEN,
            SERIAL_THRESHOLD,
            SERIAL_THRESHOLD + CHUNK_LEN,
            2 * SERIAL_THRESHOLD,
        ] {
            for len in around - 1..=around + 1 {
                let gradient = &numbers[..len];
                let sums = measure(&[gradient], NormType::L2);
                // Sums of integers this small are exact in any order.
                let squares: f64 = gradient.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                assert_eq!(sums.sum, squares, "{len} elements");
                assert_eq!(sums.largest, reference::max_magnitude(&[gradient]).to_bits(), "{len} elements");
            }
        }
    }

    #[test]
    fn updates_every_element_once() {
        let mut gradients: Vec<Vec<f32>> =
            gradients().iter().map(|gradient| vec![1.0; gradient.len()]).collect();
        let elements = gradients.iter_mut().map(|gradient| (ElementsMut::F32(gradient), Update::Scale(3.0)));
        update(&mut elements.collect::<Vec<_>>());
        assert!(gradients.iter().flatten().all(|&x| x == 3.0));
    }
}
