//! What the steps of a training have measured, on its way from the training thread to the metrics.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Clipped, Error};

/// How many steps are kept for metrics. Burn's metric thread is at most a few items behind, and as many more as there are
/// workers.
const KEPT: usize = 64;

/// The newest steps, shared by the clones of a model and by its metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// How many steps there were before those that are kept.
    before: u64,
    kept: VecDeque<Clipped>,
    error: Option<Arc<Error>>,
}

impl Steps {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has left a whole state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, clipped: Clipped) {
        let mut state = self.state();
        if state.kept.len() == KEPT {
            state.kept.pop_front();
            state.before += 1;
        }
        state.kept.push_back(clipped);
    }

    /// The first step from number `next` on, which then is that of the one after it.
    pub(super) fn take(&self, next: &mut u64) -> Option<Clipped> {
        let state = self.state();
        let number = (*next).max(state.before);
        let index = usize::try_from(number - state.before).ok()?;
        let step = state.kept.get(index).cloned()?;
        *next = number + 1;
        Some(step)
    }

    pub(super) fn last(&self) -> Option<Clipped> {
        self.state().kept.back().cloned()
    }

    /// Keeps the first error of all.
    pub(super) fn fail(&self, error: Arc<Error>) {
        self.state().error.get_or_insert(error);
    }

    pub(super) fn error(&self) -> Option<Arc<Error>> {
        self.state().error.clone()
    }
}
