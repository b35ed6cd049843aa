//! `Stopwatch`: the wall-clock time of each stage of a clip.

use std::time::Duration;
#[cfg(not(target_arch = "wasm32"))]
use std::time::Instant;

/// Measures consecutive stages. On wasm32, which has no clock, every time is zero, and the API does not expose it.
#[derive(Debug)]
pub(super) struct Stopwatch {
    #[cfg(not(target_arch = "wasm32"))]
    start: Instant,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self {
            #[cfg(not(target_arch = "wasm32"))]
            start: Instant::now(),
        }
    }

    /// Returns the time since the start or the last call.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.start, now)
    }

    #[cfg(target_arch = "wasm32")]
    #[expect(clippy::unused_self, reason = "the twin on other targets uses it")]
    pub(super) fn lap(&mut self) -> Duration {
        Duration::ZERO
    }
}
