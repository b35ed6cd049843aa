//! A progress bar on the terminal.

use std::borrow::Cow;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use gradclip_measure::text::{WIDTH, shortened};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The delay before the bar appears, so that it does not flicker for short work.
const SHOW_AFTER: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(100);
const TEMPLATE: &str = "{spinner} {msg:10} {wide_bar} {binary_bytes} of {binary_total_bytes}";
const STEPS_TEMPLATE: &str = "{spinner} {msg:20} {wide_bar} {pos} of {len}, {elapsed}";

/// A progress bar of bytes or steps. Dropping it clears the bar.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// The thread that redraws the bar until the sender is dropped.
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Creates a bar of bytes.
    pub(crate) fn new(hidden: bool) -> Self {
        Self::with_template(TEMPLATE, hidden)
    }

    /// Creates a bar of `steps` steps.
    pub(crate) fn steps(hidden: bool, steps: usize) -> Self {
        let progress = Self::with_template(STEPS_TEMPLATE, hidden);
        progress.expect(steps);
        progress
    }

    fn with_template(template: &str, hidden: bool) -> Self {
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden()).with_style(style);
        let hidden = hidden || ProgressDrawTarget::stderr().is_hidden();
        let ticker = (!hidden).then(|| tick(bar.clone())).flatten();
        Self { bar, ticker }
    }

    /// Adds to the expected total.
    pub(crate) fn expect(&self, more: usize) {
        self.bar.inc_length(more as u64);
    }

    /// Advances the bar.
    pub(crate) fn advance(&self, by: usize) {
        self.bar.inc(by as u64);
    }

    /// Shows the name of the current stage.
    pub(crate) fn stage<'a>(&self, name: impl Into<Cow<'a, str>>) {
        self.bar.set_message(shortened(&name.into(), WIDTH));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.ticker.take() {
            drop(stop);
            // A panic of the thread has already been printed.
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

/// Starts a thread that shows the bar after [`SHOW_AFTER`]. Returns `None` if it cannot: indicatif's own ticker would
/// panic.
fn tick(bar: ProgressBar) -> Option<(Sender<()>, JoinHandle<()>)> {
    let (sender, stopped) = channel();
    let run = move || {
        let mut pause = SHOW_AFTER;
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            if pause == SHOW_AFTER {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            bar.tick();
            pause = TICK;
        }
    };
    let thread = Builder::new().name("gradclip.progress".into()).spawn(run).ok()?;
    Some((sender, thread))
}
