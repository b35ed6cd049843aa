//! What took how long.

use std::time::{Duration, Instant};

use crate::progress::Progress;

/// The time of each stage, in the order in which they are reported.
pub(crate) struct Stages<'a> {
    progress: &'a Progress,
    seconds: Vec<(&'static str, Duration)>,
}

impl<'a> Stages<'a> {
    pub(crate) fn new(progress: &'a Progress) -> Self {
        let names = ["open", "read", "measure", "upload", "clip", "download", "write"];
        Self { progress, seconds: names.map(|name| (name, Duration::ZERO)).to_vec() }
    }

    pub(crate) fn seconds(self) -> Vec<(&'static str, Duration)> {
        self.seconds
    }

    pub(crate) fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        self.progress.stage(name);
        let start = Instant::now();
        let result = work();
        self.add(name, start.elapsed());
        result
    }

    /// Times the reading of some of the bytes that are expected.
    pub(crate) fn read<T>(&mut self, bytes: usize, work: impl FnOnce() -> T) -> T {
        let result = self.time("read", work);
        self.progress.advance(bytes);
        result
    }

    /// Expects so many more bytes to be read.
    pub(crate) fn expect(&self, bytes: u64) {
        self.progress.expect(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    pub(crate) fn stage(&self, name: &'static str) {
        self.progress.stage(name);
    }

    pub(crate) fn add(&mut self, name: &'static str, time: Duration) {
        if let Some((_, sum)) = self.seconds.iter_mut().find(|(known, _)| *known == name) {
            *sum += time;
        }
    }
}
