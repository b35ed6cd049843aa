//! The processor's floating-point modes: what Rust expects of them, for as long as results depend on it.
//!
//! A caller may have set its thread to take subnormal numbers for zeros (FTZ and DAZ), as audio code and `-ffast-math` do, or to
//! round in another direction. Threads inherit these modes from the one that spawns them, so those of a pool may have them,
//! too.

/// Does some work in the default modes: subnormal numbers are numbers, and results are rounded to nearest. The modes of the
/// caller are back afterwards, also if the work panics.
pub(crate) fn in_default_modes<T>(work: impl FnOnce() -> T) -> T {
    /// A function of its own, since the compiler does not know that arithmetic depends on the modes, and might move some of it.
    #[inline(never)]
    fn run<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let _restored = modes::Restored::after_default();
    run(work)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod modes {
    /// Puts the modes back when it is dropped.
    pub(super) struct Restored(Option<Modes>);

    impl Restored {
        /// Sets the default modes. Where they are set already, as almost always, this costs a few cycles.
        pub(super) fn after_default() -> Self {
            let before = read();
            let differ = before & MASK != DEFAULT;
            if differ {
                write(before & !MASK | DEFAULT);
            }
            Self(differ.then_some(before))
        }
    }

    impl Drop for Restored {
        fn drop(&mut self) {
            if let Some(before) = self.0 {
                write(before);
            }
        }
    }

    pub(super) use register::{DEFAULT, MASK, Modes, read, write};

    #[cfg(target_arch = "x86_64")]
    mod register {
        use std::arch::asm;

        /// The register MXCSR.
        pub(in super::super) type Modes = u32;

        /// All of it but the flags of past exceptions: FTZ, rounding, the masks of exceptions, DAZ.
        pub(in super::super) const MASK: Modes = 0xffc0;

        /// Exceptions are masked, and that is all.
        pub(in super::super) const DEFAULT: Modes = 0x1f80;

        pub(in super::super) fn read() -> Modes {
            let mut modes = 0;
            #[expect(unsafe_code, reason = "there is no other way to this register")]
            // SAFETY: it stores 4 bytes where there are 4.
            unsafe {
                asm!("stmxcsr [{}]", in(reg) &raw mut modes, options(nostack, preserves_flags));
            }
            modes
        }

        pub(in super::super) fn write(modes: Modes) {
            #[expect(unsafe_code, reason = "there is no other way to this register")]
            // SAFETY: these are the default modes, or what `read` found: no reserved bit is set.
            unsafe {
                asm!("ldmxcsr [{}]", in(reg) &raw const modes, options(nostack, preserves_flags));
            }
        }
    }

    #[cfg(target_arch = "aarch64")]
    mod register {
        use std::arch::asm;

        /// The register FPCR.
        pub(in super::super) type Modes = u64;

        /// The flushes to zero, rounding, and the alternative f16: FZ16, RMode, FZ, AHP; FIZ and AH.
        pub(in super::super) const MASK: Modes = 1 << 19 | 0b11 << 22 | 1 << 24 | 1 << 26 | 0b11;

        pub(in super::super) const DEFAULT: Modes = 0;

        pub(in super::super) fn read() -> Modes {
            let modes;
            #[expect(unsafe_code, reason = "there is no other way to this register")]
            // SAFETY: every user program may read it.
            unsafe {
                asm!("mrs {}, fpcr", out(reg) modes, options(nostack, preserves_flags));
            }
            modes
        }

        pub(in super::super) fn write(modes: Modes) {
            #[expect(unsafe_code, reason = "there is no other way to this register")]
            // SAFETY: these are the default modes, or what `read` found.
            unsafe {
                asm!("msr fpcr, {}", in(reg) modes, options(nostack, preserves_flags));
            }
        }
    }
}

/// On other processors the caller's modes hold.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod modes {
    pub(super) struct Restored;

    impl Restored {
        pub(super) const fn after_default() -> Self {
            Self
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) mod tests {
    use std::hint::black_box;

    use super::*;

    /// Does some work in the modes of a caller that takes subnormal numbers for zeros and rounds towards zero. To compute
    /// anything outside of [`in_default_modes`] there means nothing.
    pub(crate) fn in_odd_modes<T>(work: impl FnOnce() -> T) -> T {
        let before = modes::read();
        modes::write(before | 0xe040);
        let result = work();
        modes::write(before);
        result
    }

    #[test]
    fn modes_are_the_default_and_then_the_callers() {
        let half = |x: f32| black_box(black_box(x) * 0.5);
        let (inside, between, outside) = in_odd_modes(|| {
            (in_default_modes(|| half(f32::MIN_POSITIVE)), modes::read(), half(f32::MIN_POSITIVE))
        });
        assert_eq!((inside, outside), (f32::MIN_POSITIVE / 2.0, 0.0));
        assert_eq!(between & 0xe040, 0xe040);
    }

    #[test]
    fn modes_are_back_after_a_panic() {
        let modes = in_odd_modes(|| {
            std::panic::catch_unwind(|| in_default_modes(|| panic!("on purpose"))).unwrap_err();
            modes::read()
        });
        assert_eq!(modes & 0xe040, 0xe040);
    }
}
