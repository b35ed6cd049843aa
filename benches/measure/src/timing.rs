//! How time is taken: everything in turn, so that what else the machine does falls on all alike.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::data::random;
use crate::ops::Op;
use crate::roofline::Roofline;
use crate::statistics::Quartiles;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// An operation on the gradients.
    Op(Op),
    /// A roofline over the same bytes.
    Roofline(Roofline),
}

impl Workload {
    /// Returns the name that rows show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Op(op) => op.name(),
            Self::Roofline(Roofline::Read) => "roofline: read",
            Self::Roofline(Roofline::InPlace) => "roofline: in place",
            Self::Roofline(Roofline::Copy) => "roofline: copy",
        }
    }

    /// The fewest bytes that have to move.
    pub(crate) const fn bytes(self, set: usize) -> usize {
        match self {
            Self::Op(op) => op.bytes(set),
            Self::Roofline(Roofline::Read) => set,
            Self::Roofline(Roofline::InPlace | Roofline::Copy) => 2 * set,
        }
    }
}

/// One repetition, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// On the clock of what does the work.
    pub seconds: f64,
    /// On the host's clock, submission and waiting included.
    pub wall: f64,
    /// Of the host, to record the commands. None on the CPU.
    pub encode: Option<f64>,
    /// Of the host, until they are ready to be submitted: with an encoder and its end. None on the CPU.
    pub ready: Option<f64>,
}

/// What the repetitions of one thing took.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// [`Sample::seconds`].
    pub seconds: Quartiles,
    /// [`Sample::wall`].
    pub wall: Quartiles,
    /// [`Sample::encode`].
    pub encode: Option<Quartiles>,
    /// [`Sample::ready`].
    pub ready: Option<Quartiles>,
}

/// Fewer repetitions have no median worth the name.
const LEAST: usize = 5;
/// Where even these take several times what was granted.
const LEAST_OF_SLOW: usize = 3;
const PATIENCE: u32 = 3;
/// More do not make it any better.
const MOST: usize = 300;

/// Times each of so many things, one repetition after the other in turn, for about so long. The first turn is not
/// counted. Each turn has an order of its own: what writes leaves work behind, which the next one would always pay for.
pub fn time_interleaved(
    things: usize,
    granted: Duration,
    mut time: impl FnMut(usize) -> Result<Sample>,
) -> Result<Vec<Timing>> {
    for thing in 0..things {
        time(thing)?;
    }
    let mut samples = vec![Vec::new(); things];
    let start = Instant::now();
    let enough = |turns: usize| match turns {
        ..LEAST_OF_SLOW => false,
        LEAST_OF_SLOW..LEAST => start.elapsed() >= granted.saturating_mul(PATIENCE),
        _ => turns >= MOST || start.elapsed() >= granted,
    };
    let mut turns = 0;
    let mut order: Vec<usize> = (0..things).collect();
    while !enough(turns) {
        shuffle(&mut order, turns);
        for &thing in &order {
            samples[thing].push(time(thing)?);
        }
        turns += 1;
    }
    Ok(samples.iter().map(|samples| Timing::of(samples)).collect())
}

/// In any order, and in the same in every run.
fn shuffle(things: &mut [usize], turn: usize) {
    for place in (1..things.len()).rev() {
        let random = random((turn * things.len() + place) as u64);
        #[expect(clippy::cast_possible_truncation, reason = "less than a place")]
        things.swap(place, (random % (place as u64 + 1)) as usize);
    }
}

impl Timing {
    fn of(samples: &[Sample]) -> Self {
        let spread = |part: fn(&Sample) -> Option<f64>| Quartiles::of(samples.iter().filter_map(part));
        Self {
            seconds: spread(|sample| Some(sample.seconds)).expect("there are repetitions"),
            wall: spread(|sample| Some(sample.wall)).expect("there are repetitions"),
            encode: spread(|sample| sample.encode),
            ready: spread(|sample| sample.ready),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_repeated_in_turn_and_the_first_turn_is_not_counted() {
        let mut order = Vec::new();
        let timing = time_interleaved(3, Duration::ZERO, |thing| {
            order.push(thing);
            // The first turn would show.
            let seconds = if order.len() <= 3 { 1000.0 } else { thing as f64 };
            Ok(Sample { seconds, wall: seconds + 1.0, encode: (thing == 2).then_some(0.5), ready: None })
        })
        .unwrap();
        for turn in order.chunks(3) {
            assert!((0..3).all(|thing| turn.contains(&thing)), "{order:?}");
        }
        for (thing, timing) in timing.iter().enumerate() {
            let median = thing as f64;
            assert_eq!(timing.seconds, Quartiles { median, low: median, high: median, count: LEAST_OF_SLOW });
            assert_eq!(timing.wall.median, median + 1.0);
            assert_eq!(timing.encode.map(|encode| encode.median), (thing == 2).then_some(0.5));
        }
    }

    #[test]
    fn nothing_always_follows_on_the_same() {
        let mut order = Vec::new();
        time_interleaved(5, Duration::MAX, |thing| {
            order.push(thing);
            Ok(Sample { seconds: 1.0, wall: 1.0, encode: None, ready: None })
        })
        .unwrap();
        let after_4 = |thing| order.windows(2).filter(|pair| *pair == [4, thing]).count();
        assert!((0..4).all(|thing| after_4(thing) > MOST / 8), "{:?}", [0, 1, 2, 3].map(after_4));
    }

    #[test]
    fn quick_things_are_not_repeated_for_ever() {
        let mut calls = 0;
        let count = |_| {
            calls += 1;
            Ok(Sample { seconds: 1.0, wall: 1.0, encode: None, ready: None })
        };
        assert_eq!(time_interleaved(1, Duration::MAX, count).unwrap()[0].seconds.count, MOST);
        assert_eq!(calls, MOST + 1);
    }
}
