//! `MpiAllReduce` by itself.

use gradclip::distributed::AllReduce;
use gradclip_mpi::MpiAllReduce;
use mpi::collective::SystemOperation;
use mpi::request;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

use crate::{End, Scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "all_reduce::values", ranks: &[1, 2, 4], run: values, end: End::Passes },
    Scenario {
        name: "all_reduce::same_bits_on_all_ranks",
        ranks: &[1, 2, 4],
        run: same_bits,
        end: End::Passes,
    },
    Scenario {
        name: "all_reduce::own_communicator",
        ranks: &[2, 4],
        run: own_communicator,
        end: End::Passes,
    },
    Scenario { name: "all_reduce::part_of_the_job", ranks: &[4], run: part_of_the_job, end: End::Passes },
];

/// Sums and maxima that f64 holds exactly, of several lengths, and repeatedly, since buffers are reused.
fn values(world: &SimpleCommunicator) -> Result<(), String> {
    let mut ranks = MpiAllReduce::duplicate(world);
    let (rank, size) = (ranks.rank(), ranks.size());
    assert_eq!(
        (rank, size),
        (usize::try_from(world.rank()).unwrap(), usize::try_from(world.size()).unwrap())
    );
    for length in [1, 0, 24, 1000, 3] {
        let own = |i: usize| (rank * 10 + i) as f64;
        let sum_of = |i: usize| (0..size).map(|rank| (rank * 10 + i) as f64).sum::<f64>();
        let expected_sums: Vec<f64> = (0..length).map(sum_of).collect();
        let largest = |i: usize| ((size - 1) * 10 + i) as f64;
        // All negative, so that a maximum that starts at 0 is wrong.
        let expected_maxima: Vec<f64> = (0..length).map(|i| -((i + 1) as f64)).collect();

        let mut sums: Vec<f64> = (0..length).map(own).collect();
        ranks.sum(&mut sums).unwrap();
        assert_eq!(sums, expected_sums);

        let mut maxima: Vec<f64> = (0..length).map(own).collect();
        ranks.max(&mut maxima).unwrap();
        assert_eq!(maxima, (0..length).map(largest).collect::<Vec<_>>());

        let mut sums: Vec<f64> = (0..length).map(own).collect();
        let mut maxima: Vec<f64> = (0..length).map(|i| -((rank + 1) as f64) * (i + 1) as f64).collect();
        ranks.sum_and_max(&mut sums, &mut maxima).unwrap();
        assert_eq!((sums, maxima), (expected_sums, expected_maxima));
    }
    // Slices of different lengths, and magnitudes that only f64 holds.
    let mut sums = [1e300, -1e-300];
    let mut maxima = [if rank == 0 { 1e300 } else { -1e300 }];
    ranks.sum_and_max(&mut sums, &mut maxima).unwrap();
    assert_eq!((sums, maxima), ([size as f64 * 1e300, size as f64 * -1e-300], [1e300]));
    Ok(())
}

/// Sums whose last bits depend on the order of additions.
fn same_bits(world: &SimpleCommunicator) -> Result<(), String> {
    let mut ranks = MpiAllReduce::duplicate(world);
    for length in [1, 7, 24, 500] {
        let own = |i: usize| 1.0 / ((ranks.rank() * length + i + 3) as f64);
        let mut sums: Vec<f64> = (0..length).map(own).collect();
        let mut maxima = sums.clone();
        let largest_error = f64::EPSILON * ranks.size() as f64;
        let expected: Vec<f64> = (0..length)
            .map(|i| (0..ranks.size()).map(|rank| 1.0 / ((rank * length + i + 3) as f64)).sum())
            .collect();
        ranks.sum_and_max(&mut sums, &mut maxima).unwrap();
        for (sum, expected) in sums.iter().zip(&expected) {
            assert!((sum / expected - 1.0).abs() <= largest_error, "{sum} instead of {expected}");
        }
        for values in [sums, maxima] {
            let own: Vec<u64> = values.iter().map(|value| value.to_bits()).collect();
            let mut all = vec![0_u64; length * ranks.size()];
            world.all_gather_into(&own[..], &mut all[..]);
            assert!(all.chunks(length).all(|bits| bits == own), "the bits differ between ranks: {all:x?}");
        }
    }
    Ok(())
}

/// A collective operation of the program is in flight while the clip's operations run.
fn own_communicator(world: &SimpleCommunicator) -> Result<(), String> {
    let mut ranks = MpiAllReduce::duplicate(world);
    let own = [f64::from(world.rank() + 1); 3];
    let mut in_flight = [0.0; 3];
    let mut sums = [1.0];
    request::scope(|scope| {
        // The ranks start the two operations in different orders, which one communicator would not permit.
        if world.rank() == 0 {
            ranks.sum(&mut sums).unwrap();
            world.immediate_all_reduce_into(scope, &own, &mut in_flight, SystemOperation::sum()).wait();
        } else {
            let request =
                world.immediate_all_reduce_into(scope, &own, &mut in_flight, SystemOperation::sum());
            ranks.sum(&mut sums).unwrap();
            request.wait();
        }
    });
    let size = f64::from(world.size());
    assert_eq!((sums, in_flight), ([size], [size * (size + 1.0) / 2.0; 3]));
    Ok(())
}

/// Two halves of the ranks with a sum each.
fn part_of_the_job(world: &SimpleCommunicator) -> Result<(), String> {
    let half = world.rank() % 2;
    let color = mpi::topology::Color::with_value(half);
    let mut ranks = MpiAllReduce::new(world.split_by_color(color).unwrap());
    assert_eq!(ranks.size(), 2);
    assert_eq!(ranks.communicator().rank(), world.rank() / 2);
    let mut sum = [f64::from(world.rank())];
    ranks.sum(&mut sum).unwrap();
    assert_eq!(sum, [f64::from(2 * half + 2)]);
    Ok(())
}
