//! A progress bar for those who wait at a terminal.

use std::borrow::Cow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

/// Work shorter than this needs no bar, which would only flicker.
const PATIENCE: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(100);
const TEMPLATE: &str = "{spinner} {msg:10} {wide_bar} {binary_bytes} of {binary_total_bytes}";
const STEPS_TEMPLATE: &str = "{spinner} {msg:20} {wide_bar} {pos} of {len}, {elapsed}";

/// Bytes read and written, or steps made, out of all that are to be; it vanishes when dropped.
pub(crate) struct Progress(ProgressBar);

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
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden())
            .with_style(style)
            .with_finish(ProgressFinish::AndClear);
        bar.enable_steady_tick(TICK);
        if !hidden {
            show_later(&bar);
        }
        Self(bar)
    }

    pub(crate) fn expect(&self, more: usize) {
        self.0.inc_length(more as u64);
    }

    pub(crate) fn advance(&self, by: usize) {
        self.0.inc(by as u64);
    }

    pub(crate) fn stage(&self, name: impl Into<Cow<'static, str>>) {
        self.0.set_message(name);
    }
}

/// The target draws only on a terminal.
fn show_later(bar: &ProgressBar) {
    let bar = bar.downgrade();
    std::thread::spawn(move || {
        std::thread::sleep(PATIENCE);
        if let Some(bar) = bar.upgrade() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    });
}
