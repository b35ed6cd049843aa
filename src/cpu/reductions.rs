//! The reductions of the CPU path: the norm of each gradient, and its statistics.

use super::elements::Elements;
use super::kernels::{self, ElementCounts};
use super::norm_sums::NormSums;
use super::parallel::Reduction;
use crate::NormType;

/// Computes the [`NormSums`] of each gradient.
pub(super) struct NormReduction(pub(super) NormType);

impl Reduction for NormReduction {
    type Output = NormSums;

    const IDENTITY: NormSums = NormSums::EMPTY;

    fn map(&self, chunks: &[Elements<'_>]) -> Vec<NormSums> {
        kernels::measure(chunks, self.0)
    }

    fn combine(&self, left: NormSums, right: NormSums) -> NormSums {
        left.combine(right, self.0)
    }

    fn finish_gradient(&self, sums: NormSums) -> NormSums {
        sums.finish_gradient(self.0)
    }
}

/// Computes the [`NormSums`] of each gradient, and counts its zeros and non-finite elements.
pub(super) struct StatsReduction(pub(super) NormType);

impl Reduction for StatsReduction {
    type Output = (NormSums, ElementCounts);

    const IDENTITY: Self::Output = (NormSums::EMPTY, ElementCounts { non_finite: 0, zeros: 0 });

    fn map(&self, chunks: &[Elements<'_>]) -> Vec<Self::Output> {
        // Four chunks stay in the cache for the second pass.
        let groups = chunks.chunks(4);
        groups
            .flat_map(|chunks| kernels::measure(chunks, self.0).into_iter().zip(kernels::count(chunks)))
            .collect()
    }

    fn combine(
        &self,
        (left, left_counts): Self::Output,
        (right, right_counts): Self::Output,
    ) -> Self::Output {
        let counts = ElementCounts {
            non_finite: left_counts.non_finite + right_counts.non_finite,
            zeros: left_counts.zeros + right_counts.zeros,
        };
        (left.combine(right, self.0), counts)
    }

    fn finish_gradient(&self, (sums, counts): Self::Output) -> Self::Output {
        (sums.finish_gradient(self.0), counts)
    }
}
