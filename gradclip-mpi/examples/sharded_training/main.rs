//! Training on several processes, with sharded gradients and optimizer state, and one norm for all of them:
//! `cargo build --example sharded_training`, then `mpirun -n 4 target/debug/examples/sharded_training`
//!
//! Every rank has all parameters, and a shard of the gradients and of Adam's state (ZeRO, stage 2). A step has eight
//! micro-batches. The ranks share them out and exchange their gradients. Each adds up the gradients of its shard and writes the sum to
//! its device, where it is clipped. The clip joins the norms of all shards. Every 25th step has a broken label, and its gradient is
//! thousands of times as large as others.
//!
//! Rank 0 prints the losses. They are the same to the last bit for every number of ranks, since all sums have the same order. With
//! `--no-clip`, the broken labels ruin the training.

mod collectives;
mod model;
mod shard;

use anyhow::{Result, bail};
use gradclip::distributed::{AllReduce, ShardedClip};
use gradclip::{Clip, NonFinite};
use gradclip_mpi::MpiAllReduce;
use gradclip_mpi::mpi::topology::SimpleCommunicator;

use crate::collectives::{all_gather, exchange, share_of};
use crate::model::{BROKEN_EVERY, MICRO_BATCHES, Model};
use crate::shard::OwnShard;

const STEPS: usize = 300;
const MAX_NORM: f32 = 1.0;
const LEARNING_RATE: f32 = 0.005;

struct Options {
    steps: usize,
    clip: bool,
}

fn main() -> Result<()> {
    // Before MPI starts, so that a wrong argument is reported without it.
    let options = options(std::env::args().skip(1))?;
    gradclip_mpi::run(|world| train(world, &options));
    Ok(())
}

fn options(arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options { steps: STEPS, clip: true };
    for argument in arguments {
        match (argument.as_str(), argument.parse()) {
            ("--no-clip", _) => options.clip = false,
            (_, Ok(steps)) => options.steps = steps,
            _ => bail!("unknown argument '{argument}'; usage: sharded_training [--no-clip] [STEPS]"),
        }
    }
    Ok(options)
}

fn train(world: &SimpleCommunicator, options: &Options) -> Result<()> {
    let mut ranks = MpiAllReduce::duplicate(world);
    let (rank, size) = (ranks.rank(), ranks.size());
    let mut model = Model::new();

    let max_norm = if options.clip { MAX_NORM } else { f32::MAX };
    let parameters = model.parameters.len();
    // The norm, too, has the same bits for every number of ranks.
    let mut clip = ShardedClip::new(&[Clip::by_global_norm(max_norm).non_finite(NonFinite::Error)])?
        .reproducible(&[parameters as u64])?;
    let ranges = shard::ranges(&clip, parameters, size)?;
    let mut shard = OwnShard::open(&clip, ranges[rank].clone())?;
    let micro_batches = share_of(MICRO_BATCHES, rank, size);

    if rank == 0 {
        println!("{:>4}  {:<13} {:<13} {:<13}", "step", "loss", "norm", "coefficient");
    }
    for step in 1..=options.steps {
        let passes = micro_batches.clone().map(|micro_batch| model.backward(step, micro_batch));
        let (own_losses, own_gradients): (Vec<_>, Vec<_>) = passes.unzip();

        // Gradients of the micro-batches, in their order on any number of ranks, cut to this rank's shard.
        let gradients = exchange(world, &own_gradients, &ranges, MICRO_BATCHES);
        shard.load_sum(&gradients);
        let record = shard.clip(&mut clip, &mut ranks)?;
        let parameters = &mut model.parameters[shard.range()];
        shard.adam(parameters, step, LEARNING_RATE)?;

        let counts: Vec<_> = ranges.iter().map(ExactSizeIterator::len).collect();
        model.parameters = all_gather(world, &model.parameters[shard.range()], &counts);
        let counts: Vec<_> = (0..size).map(|rank| share_of(MICRO_BATCHES, rank, size).len()).collect();
        let loss = all_gather(world, &own_losses, &counts).iter().sum::<f32>() / MICRO_BATCHES as f32;
        // The first step; every step with a broken label, and the step before.
        let is_reported = step == 1 || [step, step + 1].iter().any(|step| step.is_multiple_of(BROKEN_EVERY));
        if rank == 0 && is_reported {
            // Rust prints as many digits as it takes to tell a float from all others.
            println!("{step:>4}  {loss:<13e} {:<13e} {:<13e}", record.total_norm, record.clip_coef);
        }
        if !loss.is_finite() {
            bail!("the loss of step {step} is {loss}");
        }
    }
    Ok(())
}
