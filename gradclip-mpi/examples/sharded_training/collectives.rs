//! The exchanges between ranks, for slices of different lengths.

use std::ops::Range;

use gradclip_mpi::mpi::Count;
use gradclip_mpi::mpi::datatype::{Partition, PartitionMut};
use gradclip_mpi::mpi::topology::SimpleCommunicator;
use gradclip_mpi::mpi::traits::{Communicator, CommunicatorCollectives};

/// Returns the part of `count` items that one rank has. The parts follow one another.
pub(crate) fn share_of(count: usize, rank: usize, size: usize) -> Range<usize> {
    count * rank / size..count * (rank + 1) / size
}

/// Sends to each rank its range of all `own` vectors, and returns this rank's range of the vectors of all ranks: `total` vectors in
/// the order of ranks, one after the other.
pub(crate) fn exchange(
    world: &SimpleCommunicator,
    own: &[Vec<f32>],
    ranges: &[Range<usize>],
    total: usize,
) -> Vec<f32> {
    let size = ranges.len();
    let rank = usize::try_from(world.rank()).expect("a rank is not negative");
    let sent: Vec<f32> = ranges
        .iter()
        .flat_map(|range| own.iter().flat_map(|vector| &vector[range.clone()]))
        .copied()
        .collect();
    let sent_counts: Vec<_> = ranges.iter().map(|range| range.len() * own.len()).collect();
    let received_counts: Vec<_> =
        (0..size).map(|from| ranges[rank].len() * share_of(total, from, size).len()).collect();
    let mut received = vec![0.0; ranges[rank].len() * total];
    let (counts, starts) = counts_and_starts(&received_counts);
    let mut to = PartitionMut::new(&mut received[..], counts, starts);
    let (counts, starts) = counts_and_starts(&sent_counts);
    world.all_to_all_varcount_into(&Partition::new(&sent[..], counts, starts), &mut to);
    received
}

/// Returns the values of all ranks, in their order.
pub(crate) fn all_gather(world: &SimpleCommunicator, own: &[f32], counts: &[usize]) -> Vec<f32> {
    let mut all = vec![0.0; counts.iter().sum()];
    let (counts, starts) = counts_and_starts(counts);
    world.all_gather_varcount_into(own, &mut PartitionMut::new(&mut all[..], counts, starts));
    all
}

/// Converts counts to those of MPI, and returns the index where each part starts.
fn counts_and_starts(counts: &[usize]) -> (Vec<Count>, Vec<Count>) {
    let count = |&count| Count::try_from(count).expect("a small model");
    let counts: Vec<_> = counts.iter().map(count).collect();
    let starts = counts.iter().scan(0, |end, count| {
        let start = *end;
        *end += count;
        Some(start)
    });
    let starts = starts.collect();
    (counts, starts)
}
