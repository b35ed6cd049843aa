//! Panics that gradclip catches.
//!
//! wgpu panics in a few cases that gradclip returns as an [`Error`](crate::Error): when a fence reports that the device is lost, and
//! when values are written through the queue of another device. The panic hook runs first.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

thread_local! {
    /// The number of calls of [`catch`] that are in progress.
    static CATCHING: Cell<usize> = const { Cell::new(0) };
}

/// Returns whether gradclip catches a panic of this thread at this moment. A panic hook that ends the process asks this first.
///
/// ```
/// let report = std::panic::take_hook();
/// std::panic::set_hook(Box::new(move |panic| {
///     report(panic);
///     if !gradclip::panics::are_caught() {
///         std::process::abort();
///     }
/// }));
/// ```
#[must_use]
pub fn are_caught() -> bool {
    CATCHING.get() > 0
}

/// Calls [`catch_unwind`], and lets [`are_caught`] report it. The state that `call` changes must be valid after a panic.
pub(crate) fn catch<T>(call: impl FnOnce() -> T) -> thread::Result<T> {
    CATCHING.set(CATCHING.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(call));
    CATCHING.set(CATCHING.get() - 1);
    result
}

#[cfg(test)]
mod tests {
    use super::{are_caught, catch};

    #[test]
    fn a_panic_is_caught_inside_catch_only() {
        assert!(!are_caught());
        catch(|| {
            assert!(are_caught());
            catch(|| panic!("on purpose")).unwrap_err();
            assert!(are_caught());
            assert!(!std::thread::spawn(are_caught).join().unwrap());
        })
        .unwrap();
        assert!(!are_caught());
    }
}
