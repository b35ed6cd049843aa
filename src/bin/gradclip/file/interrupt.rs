//! SIGINT and SIGTERM while files are written: unfinished files are removed before the process ends.

use anyhow::{Result, ensure};

#[cfg(unix)]
pub(super) use unix::Interrupts;

impl Interrupts {
    /// Fails if the process has been asked to end.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.pending(), "interrupted; no file was replaced");
        Ok(())
    }
}

#[cfg(unix)]
mod unix {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::{flag, low_level};

    /// Holds signals back, as flags, so that no thread is needed and ordinary errors clean up. A second signal ends the process at
    /// once, as does the first after this is dropped.
    pub(in crate::file) struct Interrupts {
        /// The signal, or 0.
        pending: Arc<AtomicUsize>,
        /// Whether a signal is to have its usual effect.
        usual: Arc<AtomicBool>,
    }

    impl Interrupts {
        pub(in crate::file) fn hold() -> io::Result<Self> {
            let held = Self { pending: Arc::default(), usual: Arc::default() };
            for signal in [SIGINT, SIGTERM] {
                // In this order: the first signal still finds the flag unset.
                flag::register_conditional_default(signal, Arc::clone(&held.usual))?;
                flag::register(signal, Arc::clone(&held.usual))?;
                flag::register_usize(signal, Arc::clone(&held.pending), signal.unsigned_abs() as usize)?;
            }
            Ok(held)
        }

        pub(super) fn pending(&self) -> bool {
            self.pending.load(Ordering::SeqCst) != 0
        }
    }

    impl Drop for Interrupts {
        /// Ends the process by the signal that was held back.
        fn drop(&mut self) {
            self.usual.store(true, Ordering::SeqCst);
            let pending = self.pending.load(Ordering::SeqCst);
            if let Some(signal) =
                [SIGINT, SIGTERM].into_iter().find(|signal| signal.unsigned_abs() as usize == pending)
            {
                // The process goes on only if this fails.
                let _ = low_level::emulate_default_handler(signal);
            }
        }
    }
}

/// Where there are no such signals.
#[cfg(not(unix))]
pub(super) struct Interrupts;

#[cfg(not(unix))]
impl Interrupts {
    #[expect(clippy::unnecessary_wraps, reason = "it can fail elsewhere")]
    pub(super) fn hold() -> std::io::Result<Self> {
        Ok(Self)
    }

    #[expect(clippy::unused_self, reason = "it is used elsewhere")]
    fn pending(&self) -> bool {
        false
    }
}
