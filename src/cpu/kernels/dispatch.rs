//! Selects an instruction set at run time.

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::isa::{Baseline, Isa as _, Kernel};

/// Runs a kernel with the widest instructions that the processor supports.
pub(super) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if avx2::is_supported() {
        #[expect(unsafe_code, reason = "the compiler cannot see the run-time check")]
        // SAFETY: `is_supported` has just confirmed the target features of `avx2::run`.
        return unsafe { avx2::run(kernel) };
    }
    Baseline::run(kernel)
}

/// Runs a kernel once with each supported instruction set, and returns all outputs.
#[cfg(test)]
pub(super) fn run_with_each_isa<K: Kernel>(kernel: impl Fn() -> K) -> Vec<K::Output> {
    let baseline = kernel().run::<Baseline>();
    #[cfg(target_arch = "x86_64")]
    if avx2::is_supported() {
        #[expect(unsafe_code, reason = "the compiler cannot see the run-time check")]
        // SAFETY: `is_supported` has just confirmed the target features of `avx2::run`.
        return vec![baseline, unsafe { avx2::run(kernel()) }];
    }
    vec![baseline]
}
