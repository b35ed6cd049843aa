//! `AllReduce`: the one operation between processes that a sharded clip needs.

use std::convert::Infallible;

/// An all-reduce over the processes that share one clip: the ranks of a job.
///
/// Implement it for your communication library; `gradclip-mpi` implements it for MPI. Every rank must make the same calls in the same
/// order, with slices of the same lengths. Every rank must receive the same bits. The values are finite, so a library that treats
/// NaN differently on different ranks gives no wrong results.
///
/// The trait has no `Send` bound, because communicators are often bound to a thread.
pub trait AllReduce {
    /// The error of the library.
    type Error;

    /// Returns the index of this process, below [`size`](Self::size).
    fn rank(&self) -> usize;

    /// Returns the number of processes; at least 1.
    fn size(&self) -> usize;

    /// Replaces each value by its sum over all ranks.
    ///
    /// # Errors
    ///
    /// That of the library. The values are then unspecified.
    fn sum(&mut self, values: &mut [f64]) -> Result<(), Self::Error>;

    /// Replaces each value by its maximum over all ranks.
    ///
    /// # Errors
    ///
    /// That of the library. The values are then unspecified.
    fn max(&mut self, values: &mut [f64]) -> Result<(), Self::Error>;

    /// Calls [`sum`](Self::sum) and [`max`](Self::max). Override it if the library can run both at the same time, so that a step waits
    /// for the latency of one.
    ///
    /// # Errors
    ///
    /// That of the library. The values are then unspecified.
    fn sum_and_max(&mut self, sums: &mut [f64], maxima: &mut [f64]) -> Result<(), Self::Error> {
        self.sum(sums)?;
        self.max(maxima)
    }
}

impl<T: AllReduce + ?Sized> AllReduce for &mut T {
    type Error = T::Error;

    fn rank(&self) -> usize {
        (**self).rank()
    }

    fn size(&self) -> usize {
        (**self).size()
    }

    fn sum(&mut self, values: &mut [f64]) -> Result<(), Self::Error> {
        (**self).sum(values)
    }

    fn max(&mut self, values: &mut [f64]) -> Result<(), Self::Error> {
        (**self).max(values)
    }

    fn sum_and_max(&mut self, sums: &mut [f64], maxima: &mut [f64]) -> Result<(), Self::Error> {
        (**self).sum_and_max(sums, maxima)
    }
}

/// The all-reduce of a job with one process, which changes nothing: for a trainer that runs with and without a cluster, and for
/// several devices of one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleProcess;

impl AllReduce for SingleProcess {
    type Error = Infallible;

    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&mut self, _: &mut [f64]) -> Result<(), Infallible> {
        Ok(())
    }

    fn max(&mut self, _: &mut [f64]) -> Result<(), Infallible> {
        Ok(())
    }
}
