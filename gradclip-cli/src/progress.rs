//! A progress bar for those who wait at a terminal.

use std::borrow::Cow;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use gradclip_measure::text::{WIDTH, shortened};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work shorter than this needs no bar, which would only flicker.
const SHOW_AFTER: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(100);
const TEMPLATE: &str = "{spinner} {msg:10} {wide_bar} {binary_bytes} of {binary_total_bytes}";
const STEPS_TEMPLATE: &str = "{spinner} {msg:20} {wide_bar} {pos} of {len}, {elapsed}";

/// Bytes read and written, or steps made, out of all that are to be; it vanishes when dropped.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// What shows the bar and keeps it moving, until the sender is dropped.
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Of bytes.
    pub(crate) fn new(hidden: bool) -> Self {
        Self::with_template(TEMPLATE, hidden)
    }

    /// Of so many steps.
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

    pub(crate) fn expect(&self, more: usize) {
        self.bar.inc_length(more as u64);
    }

    pub(crate) fn advance(&self, by: usize) {
        self.bar.inc(by as u64);
    }

    pub(crate) fn stage<'a>(&self, name: impl Into<Cow<'a, str>>) {
        self.bar.set_message(shortened(&name.into(), WIDTH));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.ticker.take() {
            drop(stop);
            // A thread that has panicked has said so.
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

/// Shows the bar after a while, from a thread of its own. Where there can be no thread there is no bar: the one of
/// indicatif's own ticker would be a panic.
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
