//! Holds back SIGHUP, SIGINT and SIGTERM while files are written, so that unfinished files are removed first.

use anyhow::{Result, ensure};

#[cfg(unix)]
pub(super) use unix::HeldSignals;

impl HeldSignals {
    /// Fails if a signal has arrived.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.pending(), "interrupted; no file was replaced");
        Ok(())
    }
}

/// Handles SIGXFSZ, which would end the process: a write beyond `ulimit -f` fails like a write to a full disk, and
/// unfinished files are removed.
pub(crate) fn survive_file_size_limit() {
    // If registration fails, the signal keeps its default action.
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default());
}

#[cfg(unix)]
mod unix {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::{fs, io};

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::{flag, low_level};

    const SIGNALS: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];

    /// Holds back signals by setting flags, so that errors clean up and no thread is needed.
    ///
    /// A second signal ends the process at once, as does the first one after this value is dropped.
    pub(in crate::file) struct HeldSignals {
        /// The pending signal, or 0.
        pending: Arc<AtomicUsize>,
        /// Whether signals have their default action.
        default_action: Arc<AtomicBool>,
    }

    impl HeldSignals {
        pub(in crate::file) fn hold() -> io::Result<Self> {
            let held = Self { pending: Arc::default(), default_action: Arc::default() };
            // If unknown, SIGHUP keeps its action, and the other two count as not ignored.
            let ignored = |signal| is_ignored(signal).unwrap_or(signal == SIGHUP);
            for signal in SIGNALS.into_iter().filter(|&signal| !ignored(signal)) {
                // The default action is registered first, so that the first signal finds its flag unset.
                flag::register_conditional_default(signal, Arc::clone(&held.default_action))?;
                flag::register(signal, Arc::clone(&held.default_action))?;
                flag::register_usize(signal, Arc::clone(&held.pending), signal.unsigned_abs() as usize)?;
            }
            Ok(held)
        }

        pub(super) fn pending(&self) -> bool {
            self.pending.load(Ordering::SeqCst) != 0
        }
    }

    /// Whether the parent process had the signal ignored, as `nohup` does. `None` if unknown.
    fn is_ignored(signal: i32) -> Option<bool> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        let ignored = u64::from_str_radix(ignored.trim(), 16).ok()?;
        Some(ignored >> (signal - 1) & 1 == 1)
    }

    impl Drop for HeldSignals {
        /// Ends the process by the pending signal, if there is one.
        fn drop(&mut self) {
            self.default_action.store(true, Ordering::SeqCst);
            let pending = self.pending.load(Ordering::SeqCst);
            if let Some(signal) = SIGNALS.into_iter().find(|signal| signal.unsigned_abs() as usize == pending)
            {
                // Returns only on failure.
                let _ = low_level::emulate_default_handler(signal);
            }
        }
    }
}

/// A placeholder on systems without these signals.
#[cfg(not(unix))]
pub(super) struct HeldSignals;

#[cfg(not(unix))]
impl HeldSignals {
    #[expect(clippy::unnecessary_wraps, reason = "it can fail on Unix")]
    pub(super) fn hold() -> std::io::Result<Self> {
        Ok(Self)
    }

    #[expect(clippy::unused_self, reason = "it is used on Unix")]
    fn pending(&self) -> bool {
        false
    }
}
