//! Measures the time of each stage of a command and shows the stage in the progress bar.

use std::time::{Duration, Instant};

use crate::progress::Progress;

/// The times of the stages, in report order.
pub(crate) struct Stages<'a> {
    progress: &'a Progress,
    seconds: Vec<(&'static str, Duration)>,
}

impl<'a> Stages<'a> {
    pub(crate) fn new(progress: &'a Progress) -> Self {
        let names = ["open", "read", "measure", "upload", "clip", "download", "write"];
        Self { progress, seconds: names.map(|name| (name, Duration::ZERO)).to_vec() }
    }

    /// Returns the time of each stage.
    pub(crate) fn seconds(self) -> Vec<(&'static str, Duration)> {
        self.seconds
    }

    /// Runs `work` and adds its time to the stage `name`.
    pub(crate) fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        self.progress.stage(name);
        let start = Instant::now();
        let result = work();
        self.add(name, start.elapsed());
        result
    }

    /// Runs `work`, which reads `bytes` expected bytes, and adds its time to the stage `read`.
    pub(crate) fn read<T>(&mut self, bytes: usize, work: impl FnOnce() -> T) -> T {
        let result = self.time("read", work);
        self.progress.advance(bytes);
        result
    }

    /// Adds `bytes` to the bytes that will be read.
    pub(crate) fn expect(&self, bytes: u64) {
        self.progress.expect(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    /// Shows the stage `name` in the progress bar.
    pub(crate) fn stage(&self, name: &'static str) {
        self.progress.stage(name);
    }

    /// Adds `time` to the stage `name`.
    pub(crate) fn add(&mut self, name: &'static str, time: Duration) {
        if let Some((_, sum)) = self.seconds.iter_mut().find(|(known, _)| *known == name) {
            *sum += time;
        }
    }
}
