//! Sets the floating-point modes of the processor to Rust's defaults during computations.
//!
//! A caller may have set its thread to flush subnormals to zero (FTZ and DAZ), as audio code and `-ffast-math` do, or
//! to round in another direction. Threads inherit the modes of the thread that spawns them, so pool threads may have
//! them too.

/// Runs `work` in the default modes: subnormals are not flushed, and results are rounded to nearest. Restores the modes
/// of the caller afterwards, even if `work` panics.
pub(crate) fn in_default_modes<T>(work: impl FnOnce() -> T) -> T {
    /// Not inlined: the compiler does not know that arithmetic depends on the modes, and could move it past the point
    /// where they change.
    #[inline(never)]
    fn run<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let _restored = modes::Restored::after_default();
    run(work)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod modes {
    /// Restores the modes on drop.
    pub(super) struct Restored(Option<Modes>);

    impl Restored {
        /// Sets the default modes. This takes a few cycles if they are already set, as is usual.
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

        /// The value of the MXCSR register.
        pub(in super::super) type Modes = u32;

        /// FTZ, the rounding mode, the exception masks and DAZ: all bits except the exception flags.
        pub(in super::super) const MASK: Modes = 0xffc0;

        /// All exceptions masked, and no other bit set.
        pub(in super::super) const DEFAULT: Modes = 0x1f80;

        pub(in super::super) fn read() -> Modes {
            let mut modes = 0;
            #[expect(unsafe_code, reason = "the register is only accessible from assembly")]
            // SAFETY: the instruction stores 4 bytes to a u32.
            unsafe {
                asm!("stmxcsr [{}]", in(reg) &raw mut modes, options(nostack, preserves_flags));
            }
            modes
        }

        pub(in super::super) fn write(modes: Modes) {
            #[expect(unsafe_code, reason = "the register is only accessible from assembly")]
            // SAFETY: `modes` holds the default modes or a value from `read`, so no reserved bit is set.
            unsafe {
                asm!("ldmxcsr [{}]", in(reg) &raw const modes, options(nostack, preserves_flags));
            }
        }
    }

    #[cfg(target_arch = "aarch64")]
    mod register {
        use std::arch::asm;

        /// The value of the FPCR register.
        pub(in super::super) type Modes = u64;

        /// FZ16, RMode, FZ, AHP, FIZ and AH: flushing to zero, rounding, and the alternative f16 format.
        pub(in super::super) const MASK: Modes = 1 << 19 | 0b11 << 22 | 1 << 24 | 1 << 26 | 0b11;

        pub(in super::super) const DEFAULT: Modes = 0;

        pub(in super::super) fn read() -> Modes {
            let modes;
            #[expect(unsafe_code, reason = "the register is only accessible from assembly")]
            // SAFETY: the register is readable in user mode.
            unsafe {
                asm!("mrs {}, fpcr", out(reg) modes, options(nostack, preserves_flags));
            }
            modes
        }

        pub(in super::super) fn write(modes: Modes) {
            #[expect(unsafe_code, reason = "the register is only accessible from assembly")]
            // SAFETY: `modes` holds the default modes or a value from `read`.
            unsafe {
                asm!("msr fpcr, {}", in(reg) modes, options(nostack, preserves_flags));
            }
        }
    }
}

/// Other processors keep the modes of the caller.
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

    /// Runs `work` with FTZ, DAZ and rounding towards zero. In these modes, Rust does not define the results of
    /// arithmetic outside [`in_default_modes`].
    pub(crate) fn in_odd_modes<T>(work: impl FnOnce() -> T) -> T {
        let before = modes::read();
        modes::write(before | 0xe040);
        let result = work();
        modes::write(before);
        result
    }

    #[test]
    fn sets_the_default_modes_and_restores_those_of_the_caller() {
        let half = |x: f32| black_box(black_box(x) * 0.5);
        let (inside, between, outside) = in_odd_modes(|| {
            (in_default_modes(|| half(f32::MIN_POSITIVE)), modes::read(), half(f32::MIN_POSITIVE))
        });
        assert_eq!((inside, outside), (f32::MIN_POSITIVE / 2.0, 0.0));
        assert_eq!(between & 0xe040, 0xe040);
    }

    #[test]
    fn restores_the_modes_after_a_panic() {
        let modes = in_odd_modes(|| {
            std::panic::catch_unwind(|| in_default_modes(|| panic!("on purpose"))).unwrap_err();
            modes::read()
        });
        assert_eq!(modes & 0xe040, 0xe040);
    }
}
