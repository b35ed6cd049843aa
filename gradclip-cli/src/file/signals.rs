//! SIGHUP, SIGINT and SIGTERM while files are written: unfinished files are removed before the process ends.

use anyhow::{Result, ensure};

#[cfg(unix)]
pub(super) use unix::HeldSignals;

impl HeldSignals {
    /// Fails if the process has been asked to end.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.pending(), "interrupted; no file was replaced");
        Ok(())
    }
}

/// Makes a file that grows beyond `ulimit -f` an error of the write, and so an error that cleans up, like a full disk. The signal
/// that comes with it would end the process.
pub(crate) fn survive_file_size_limit() {
    // Where the signal cannot be handled it does what it always did.
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

    /// Holds signals back, as flags, so that no thread is needed and ordinary errors clean up. A second signal ends the process at
    /// once, as does the first after this is dropped.
    pub(in crate::file) struct HeldSignals {
        /// The signal, or 0.
        pending: Arc<AtomicUsize>,
        /// Whether a signal is to have its usual effect.
        usual: Arc<AtomicBool>,
    }

    impl HeldSignals {
        pub(in crate::file) fn hold() -> io::Result<Self> {
            let held = Self { pending: Arc::default(), usual: Arc::default() };
            // Where that is not known, a hangup may do what it always did, and the other two are not ignored.
            let ignored = |signal| is_ignored(signal).unwrap_or(signal == SIGHUP);
            for signal in SIGNALS.into_iter().filter(|&signal| !ignored(signal)) {
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

    /// Whether whoever started the process wants the signal ignored, as `nohup` does.
    fn is_ignored(signal: i32) -> Option<bool> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        let ignored = u64::from_str_radix(ignored.trim(), 16).ok()?;
        Some(ignored >> (signal - 1) & 1 == 1)
    }

    impl Drop for HeldSignals {
        /// Ends the process by the signal that was held back.
        fn drop(&mut self) {
            self.usual.store(true, Ordering::SeqCst);
            let pending = self.pending.load(Ordering::SeqCst);
            if let Some(signal) = SIGNALS.into_iter().find(|signal| signal.unsigned_abs() as usize == pending)
            {
                // The process goes on only if this fails.
                let _ = low_level::emulate_default_handler(signal);
            }
        }
    }
}

/// Where there are no such signals.
#[cfg(not(unix))]
pub(super) struct HeldSignals;

#[cfg(not(unix))]
impl HeldSignals {
    #[expect(clippy::unnecessary_wraps, reason = "it can fail elsewhere")]
    pub(super) fn hold() -> std::io::Result<Self> {
        Ok(Self)
    }

    #[expect(clippy::unused_self, reason = "it is used elsewhere")]
    fn pending(&self) -> bool {
        false
    }
}
