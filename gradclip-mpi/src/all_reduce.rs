use std::convert::Infallible;
use std::fmt;

use gradclip::distributed::AllReduce;
use mpi::collective::SystemOperation;
use mpi::request;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

/// The all-reduce of an MPI communicator, for gradclip's sharded clips.
///
/// It never returns an error: rsmpi keeps MPI's default error handler, which ends the job.
pub struct MpiAllReduce<C = SimpleCommunicator> {
    communicator: C,
    sums: Vec<f64>,
    maxima: Vec<f64>,
}

impl MpiAllReduce {
    /// Duplicates `communicator`, so that clips never mix with other messages in flight on it. This is a collective call: every rank
    /// of `communicator` must make it.
    ///
    /// Create it once for a communicator, and drop it before MPI is finalized: inside the closure of [`run`](crate::run).
    ///
    /// ```no_run
    /// use gradclip::distributed::AllReduce;
    /// use gradclip_mpi::{MpiAllReduce, run};
    ///
    /// run(|world| -> Result<(), std::convert::Infallible> {
    ///     let mut ranks = MpiAllReduce::duplicate(world);
    ///     let mut count = [1.0];
    ///     ranks.sum(&mut count)?;
    ///     assert_eq!(count[0], ranks.size() as f64);
    ///     Ok(())
    /// });
    /// ```
    #[must_use]
    pub fn duplicate(communicator: &impl Communicator) -> Self {
        Self::new(communicator.duplicate())
    }
}

impl<C: Communicator> MpiAllReduce<C> {
    /// Uses `communicator` itself. While a clip is in progress, no other collective operation may be in flight on it, unless all
    /// ranks start both in the same order.
    #[must_use]
    pub const fn new(communicator: C) -> Self {
        Self { communicator, sums: Vec::new(), maxima: Vec::new() }
    }

    /// Returns the communicator.
    #[must_use]
    pub const fn communicator(&self) -> &C {
        &self.communicator
    }
}

impl<C: Communicator> AllReduce for MpiAllReduce<C> {
    type Error = Infallible;

    fn rank(&self) -> usize {
        index(self.communicator.rank())
    }

    fn size(&self) -> usize {
        index(self.communicator.size())
    }

    fn sum(&mut self, values: &mut [f64]) -> Result<(), Infallible> {
        let own = copy(&mut self.sums, values);
        self.communicator.all_reduce_into(own, values, SystemOperation::sum());
        Ok(())
    }

    fn max(&mut self, values: &mut [f64]) -> Result<(), Infallible> {
        let own = copy(&mut self.maxima, values);
        self.communicator.all_reduce_into(own, values, SystemOperation::max());
        Ok(())
    }

    /// Starts both reductions before it waits for either.
    fn sum_and_max(&mut self, sums: &mut [f64], maxima: &mut [f64]) -> Result<(), Infallible> {
        let own_sums = copy(&mut self.sums, sums);
        let own_maxima = copy(&mut self.maxima, maxima);
        let ranks = &self.communicator;
        request::scope(|scope| {
            let sum = ranks.immediate_all_reduce_into(scope, own_sums, sums, SystemOperation::sum());
            let max = ranks.immediate_all_reduce_into(scope, own_maxima, maxima, SystemOperation::max());
            sum.wait_without_status();
            max.wait_without_status();
        });
        Ok(())
    }
}

impl<C: Communicator> fmt::Debug for MpiAllReduce<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpiAllReduce").field("rank", &self.rank()).field("size", &self.size()).finish()
    }
}

/// Copies `values` into `buffer`, since MPI must not send from the buffer that it receives in.
fn copy<'a>(buffer: &'a mut Vec<f64>, values: &[f64]) -> &'a [f64] {
    buffer.clear();
    buffer.extend_from_slice(values);
    buffer
}

/// Converts a rank or a number of ranks, which MPI never returns negative.
fn index(rank: mpi::Rank) -> usize {
    usize::try_from(rank).expect("a rank of a communicator is not negative")
}
