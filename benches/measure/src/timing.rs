//! Interleaved timing: all candidates take turns, so that noise on the machine affects them alike.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::data::random;
use crate::ops::Op;
use crate::roofline::Roofline;
use crate::statistics::Quartiles;

/// A timed workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// An operation on the gradients.
    Op(Op),
    /// A roofline over the same bytes.
    Roofline(Roofline),
}

impl Workload {
    /// Returns the name that the report uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Op(op) => op.name(),
            Self::Roofline(Roofline::Read) => "roofline: read",
            Self::Roofline(Roofline::InPlace) => "roofline: in place",
            Self::Roofline(Roofline::Copy) => "roofline: copy",
        }
    }

    /// Returns the minimum number of bytes that the workload moves for a set of `set` bytes.
    pub(crate) const fn bytes(self, set: usize) -> usize {
        match self {
            Self::Op(op) => op.bytes(set),
            Self::Roofline(Roofline::Read) => set,
            Self::Roofline(Roofline::InPlace | Roofline::Copy) => 2 * set,
        }
    }
}

/// The time of one repetition, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The time on the clock of the device that does the work.
    pub seconds: f64,
    /// The wall time of the host, including submission and the wait.
    pub wall: f64,
    /// The host time to record the commands. `None` on the CPU.
    pub encode: Option<f64>,
    /// The host time to create an encoder, record the commands and finish the encoder. `None` on the CPU.
    pub ready: Option<f64>,
}

/// The quartiles of all repetitions of one workload.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Quartiles of [`Sample::seconds`].
    pub seconds: Quartiles,
    /// Quartiles of [`Sample::wall`].
    pub wall: Quartiles,
    /// Quartiles of [`Sample::encode`].
    pub encode: Option<Quartiles>,
    /// Quartiles of [`Sample::ready`].
    pub ready: Option<Quartiles>,
}

/// The minimum number of repetitions for a meaningful median.
const MIN_REPETITIONS: usize = 5;
/// The minimum if [`MIN_REPETITIONS`] would exceed the budget by a factor of [`MAX_OVERRUN`].
const MIN_REPETITIONS_OF_SLOW: usize = 3;
/// The factor by which slow workloads may exceed the budget.
const MAX_OVERRUN: u32 = 3;
/// The maximum number of repetitions: more do not improve the median.
const MAX_REPETITIONS: usize = 300;

/// Times `count` workloads in turn for about `budget`. `time` runs one repetition of the workload with the given index.
///
/// The first turn is a warm-up and is not counted. Each turn has its own order: a workload that writes leaves pending
/// writes behind, which would otherwise always slow down the same successor.
pub fn time_interleaved(
    count: usize,
    budget: Duration,
    mut time: impl FnMut(usize) -> Result<Sample>,
) -> Result<Vec<Timing>> {
    for index in 0..count {
        time(index)?;
    }
    let mut samples = vec![Vec::new(); count];
    let start = Instant::now();
    let enough = |turns: usize| match turns {
        ..MIN_REPETITIONS_OF_SLOW => false,
        MIN_REPETITIONS_OF_SLOW..MIN_REPETITIONS => start.elapsed() >= budget.saturating_mul(MAX_OVERRUN),
        _ => turns >= MAX_REPETITIONS || start.elapsed() >= budget,
    };
    let mut turns = 0;
    let mut order: Vec<usize> = (0..count).collect();
    while !enough(turns) {
        shuffle(&mut order, turns);
        for &index in &order {
            samples[index].push(time(index)?);
        }
        turns += 1;
    }
    Ok(samples.iter().map(|samples| Timing::of(samples)).collect())
}

/// Shuffles `order`. The result depends only on `turn`, so that every run has the same orders.
fn shuffle(order: &mut [usize], turn: usize) {
    for position in (1..order.len()).rev() {
        let random = random((turn * order.len() + position) as u64);
        #[expect(clippy::cast_possible_truncation, reason = "smaller than `position`")]
        order.swap(position, (random % (position as u64 + 1)) as usize);
    }
}

impl Timing {
    fn of(samples: &[Sample]) -> Self {
        let spread = |part: fn(&Sample) -> Option<f64>| Quartiles::of(samples.iter().filter_map(part));
        Self {
            seconds: spread(|sample| Some(sample.seconds)).expect("at least one repetition"),
            wall: spread(|sample| Some(sample.wall)).expect("at least one repetition"),
            encode: spread(|sample| sample.encode),
            ready: spread(|sample| sample.ready),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_take_turns_and_the_first_turn_is_not_counted() {
        let mut order = Vec::new();
        let timing = time_interleaved(3, Duration::ZERO, |index| {
            order.push(index);
            // A counted first turn would show in the median.
            let seconds = if order.len() <= 3 { 1000.0 } else { index as f64 };
            Ok(Sample { seconds, wall: seconds + 1.0, encode: (index == 2).then_some(0.5), ready: None })
        })
        .unwrap();
        for turn in order.chunks(3) {
            assert!((0..3).all(|index| turn.contains(&index)), "{order:?}");
        }
        for (index, timing) in timing.iter().enumerate() {
            let median = index as f64;
            assert_eq!(
                timing.seconds,
                Quartiles { median, low: median, high: median, count: MIN_REPETITIONS_OF_SLOW }
            );
            assert_eq!(timing.wall.median, median + 1.0);
            assert_eq!(timing.encode.map(|encode| encode.median), (index == 2).then_some(0.5));
        }
    }

    #[test]
    fn the_order_changes_from_turn_to_turn() {
        let mut order = Vec::new();
        time_interleaved(5, Duration::MAX, |index| {
            order.push(index);
            Ok(Sample { seconds: 1.0, wall: 1.0, encode: None, ready: None })
        })
        .unwrap();
        let after_4 = |index| order.windows(2).filter(|pair| *pair == [4, index]).count();
        assert!((0..4).all(|index| after_4(index) > MAX_REPETITIONS / 8), "{:?}", [0, 1, 2, 3].map(after_4));
    }

    #[test]
    fn the_number_of_repetitions_is_limited() {
        let mut calls = 0;
        let count = |_| {
            calls += 1;
            Ok(Sample { seconds: 1.0, wall: 1.0, encode: None, ready: None })
        };
        assert_eq!(time_interleaved(1, Duration::MAX, count).unwrap()[0].seconds.count, MAX_REPETITIONS);
        assert_eq!(calls, MAX_REPETITIONS + 1);
    }
}
