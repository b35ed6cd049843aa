//! Passes the outcomes of training steps from the training thread to the metrics.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Clipped, Error};

/// The number of steps kept for the metrics. Burn's metric thread lags by a few items, plus one per worker.
const CAPACITY: usize = 64;

/// The latest steps, shared by the clones of a model and by its metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The number of steps dropped so far.
    dropped: u64,
    latest: VecDeque<Clipped>,
    /// The first error.
    error: Option<Arc<Error>>,
}

impl Steps {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave an inconsistent state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, clipped: Clipped) {
        let mut state = self.state();
        if state.latest.len() == CAPACITY {
            state.latest.pop_front();
            state.dropped += 1;
        }
        state.latest.push_back(clipped);
    }

    /// Returns the first kept step at or after number `next`, and advances `next` past it.
    pub(super) fn read(&self, next: &mut u64) -> Option<Clipped> {
        let state = self.state();
        let number = (*next).max(state.dropped);
        let index = usize::try_from(number - state.dropped).ok()?;
        let step = state.latest.get(index).cloned()?;
        *next = number + 1;
        Some(step)
    }

    pub(super) fn last(&self) -> Option<Clipped> {
        self.state().latest.back().cloned()
    }

    /// Stores the error, unless an earlier one is stored.
    pub(super) fn fail(&self, error: Arc<Error>) {
        self.state().error.get_or_insert(error);
    }

    pub(super) fn error(&self) -> Option<Arc<Error>> {
        self.state().error.clone()
    }
}
