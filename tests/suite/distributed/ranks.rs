//! Ranks as threads of this process, with an all-reduce of their own.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gradclip::distributed::AllReduce;

/// The meeting point of the ranks.
struct Meeting {
    table: Mutex<Table>,
    arrival: Condvar,
    /// The order in which the ranks' numbers are combined.
    order: Vec<usize>,
}

#[derive(Default)]
struct Table {
    /// What each rank brought to the current call.
    brought: Vec<Vec<f64>>,
    /// The number of arrivals so far.
    arrivals: usize,
}

impl Meeting {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all ranks have arrived. If one of them has panicked, the test must not hang.
    fn wait(&self) {
        const PATIENCE: Duration = Duration::from_secs(60);
        let size = self.order.len();
        let mut table = self.table();
        table.arrivals += 1;
        let needed = table.arrivals.next_multiple_of(size);
        self.arrival.notify_all();
        let waited = self.arrival.wait_timeout_while(table, PATIENCE, |table| table.arrivals < needed);
        let timed_out = waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        assert!(!timed_out, "another rank did not come");
    }
}

/// The all-reduce of one thread. It combines the ranks in a fixed order that is not theirs, drops NaN as some MPI libraries do in
/// `MPI_MAX`, and fails the test if a number is not finite or a rank brings another number of numbers.
pub(super) struct Rank<'a> {
    meeting: &'a Meeting,
    index: usize,
    /// The number of calls so far.
    pub(super) calls: usize,
}

/// Runs one thread for each rank, and returns their results in order. `seed` chooses the order of combination.
pub(super) fn ranks<T: Send>(size: usize, seed: usize, run: impl Fn(&mut Rank<'_>) -> T + Sync) -> Vec<T> {
    let mut order: Vec<usize> = (0..size).collect();
    order.rotate_left(seed % size);
    if seed % 2 == 1 {
        order.reverse();
    }
    let table = Table { brought: vec![Vec::new(); size], arrivals: 0 };
    let meeting = Meeting { table: Mutex::new(table), arrival: Condvar::new(), order };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size)
            .map(|index| {
                scope.spawn({
                    let (meeting, run) = (&meeting, &run);
                    move || run(&mut Rank { meeting, index, calls: 0 })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank panicked")).collect()
    })
}

impl Rank<'_> {
    fn combine(&mut self, values: &mut [f64], combine: impl Fn(f64, f64) -> f64) {
        assert!(values.iter().all(|value| value.is_finite()), "rank {} sends {values:?}", self.index);
        self.calls += 1;
        self.meeting.table().brought[self.index] = values.to_vec();
        self.meeting.wait();
        {
            let all = &self.meeting.table().brought;
            let mut ordered = self.meeting.order.iter().map(|&rank| &all[rank]);
            let first = ordered.next().expect("at least one rank");
            assert_eq!(first.len(), values.len(), "the ranks bring different numbers");
            values.copy_from_slice(first);
            for other in ordered {
                assert_eq!(other.len(), values.len(), "the ranks bring different numbers");
                values.iter_mut().zip(other).for_each(|(value, &other)| *value = combine(*value, other));
            }
        }
        self.meeting.wait();
    }
}

impl AllReduce for Rank<'_> {
    type Error = String;

    fn rank(&self) -> usize {
        self.index
    }

    fn size(&self) -> usize {
        self.meeting.order.len()
    }

    fn sum(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.combine(values, |a, b| a + b);
        Ok(())
    }

    fn max(&mut self, values: &mut [f64]) -> Result<(), String> {
        // `f64::max` drops a NaN.
        self.combine(values, f64::max);
        Ok(())
    }
}

/// Cuts a list of gradients into one list for each rank. Each gradient is cut at `cuts`, shares of its length; a rank gets no
/// elements of some gradients.
pub(super) fn cut(gradients: &[Vec<f32>], cuts: &[f64]) -> Vec<Vec<Vec<f32>>> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a small length")]
    let at = |gradient: &Vec<f32>, share: f64| ((gradient.len() as f64 * share) as usize).min(gradient.len());
    let bounds: Vec<f64> = [0.0].iter().chain(cuts).chain(&[1.0]).copied().collect();
    bounds
        .windows(2)
        .map(|pair| {
            gradients
                .iter()
                .map(|gradient| gradient[at(gradient, pair[0])..at(gradient, pair[1])].to_vec())
                .collect()
        })
        .collect()
}
