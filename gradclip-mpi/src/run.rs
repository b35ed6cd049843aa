use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use std::{panic, thread};

use gradclip::panics::are_caught;
use mpi::Threading;
use mpi::environment::{initialize_with_threading, is_finalized};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

/// The exit code of a job whose program returned an error.
const FAILED: i32 = 1;
/// The exit code of a job after a panic, as that of a Rust process.
const PANICKED: i32 = 101;
/// A rank with an error waits so long for the errors of others.
const GRACE: Duration = Duration::from_secs(1);
/// A rank reports that it waits for the others this long after its program has returned.
const REPORT_AFTER: Duration = Duration::from_secs(60);

/// Runs `program` on every rank of an MPI job and returns its value. If it fails on one rank, the whole job ends.
///
/// It initializes MPI with [`Threading::Funneled`], which suits wgpu: a process may have many threads, and only the one that
/// called `run` may call MPI. `program` receives the communicator of all ranks. After `program` has returned on every rank, `run`
/// finalizes MPI. A process can call it once.
///
/// Without this guard, a rank that panics or returns an error leaves the others waiting in their next collective call, and the
/// job hangs. The guard calls `MPI_Abort`, so that the launcher ends all ranks and returns an error, if
///
/// - `program` returns an error: it is printed to stderr, with the rank. The exit code is 1. If all ranks return one, each is
///   printed.
/// - the calling thread panics, even if the program would catch the panic: unwinding runs destructors that may wait for other ranks.
///   The exit code is 101. Panics of wgpu that [gradclip catches](gradclip::panics) are errors like others.
///
/// The launcher itself ends the job if a process dies or exits before `run` returns. A panic on another thread does not end the
/// job; join that thread, or receive from it, and return the error.
///
/// MPI cannot detect a rank that returns `Ok` early while others still communicate: they wait for one another. After a
/// minute, the rank that has returned says so on stderr. Decide whether to end training from values that are the same on all
/// ranks.
///
/// ```no_run
/// gradclip_mpi::run(|world| -> Result<(), gradclip::Error> {
///     use gradclip_mpi::mpi::traits::Communicator;
///
///     println!("rank {} of {}", world.rank(), world.size());
///     Ok(())
/// });
/// ```
///
/// # Panics
///
/// If MPI is initialized already, or if the MPI library does not support threads.
pub fn run<T, E: Display>(program: impl FnOnce(&SimpleCommunicator) -> Result<T, E>) -> T {
    let (universe, threading) = initialize_with_threading(Threading::Funneled)
        .expect("gradclip_mpi::run initializes MPI, which is initialized already");
    abort_on_panic();
    assert!(threading >= Threading::Funneled, "the MPI library does not support processes with threads");
    let world = universe.world();
    // The barrier at the end must not meet the program's collective calls on another rank.
    let end = world.duplicate();
    match catch_unwind(AssertUnwindSafe(|| program(&world))) {
        Ok(Ok(value)) => {
            await_all_ranks(&end);
            value
        }
        Ok(Err(error)) => {
            eprintln!("rank {} of {}: error: {error:#}", world.rank(), world.size());
            abort_after_others(&end)
        }
        // A panic of another thread that `resume_unwind` carried here, past the hook.
        Err(payload) => {
            eprintln!("rank {} of {}: a thread panicked: {}", world.rank(), world.size(), message(&*payload));
            abort(PANICKED)
        }
    }
}

/// Ends the job from the panic hook of this thread, before unwinding starts.
fn abort_on_panic() {
    let thread_of_mpi = thread::current().id();
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        report(panic);
        if thread::current().id() == thread_of_mpi && !are_caught() && !is_finalized() {
            let world = SimpleCommunicator::world();
            eprintln!("rank {} of {} panicked; the job ends", world.rank(), world.size());
            abort(PANICKED)
        }
    }));
}

/// Waits until `program` has returned on all ranks, and reports if that takes long.
fn await_all_ranks(ranks: &SimpleCommunicator) {
    let mut barrier = ranks.immediate_barrier();
    let mut polls = Polls::new();
    let mut reported = false;
    while let Err(pending) = barrier.test() {
        barrier = pending;
        if !reported && polls.elapsed() >= REPORT_AFTER {
            let (rank, size, seconds) = (ranks.rank(), ranks.size(), REPORT_AFTER.as_secs());
            eprintln!("rank {rank} of {size} returned {seconds} s ago and waits for ranks that have not");
            reported = true;
        }
        polls.pause();
    }
}

/// Ends the job after an error. If all ranks have one, each has the time to print its own: one of them knows the cause.
fn abort_after_others(ranks: &SimpleCommunicator) -> ! {
    let mut barrier = ranks.immediate_barrier();
    let mut polls = Polls::new();
    while let Err(pending) = barrier.test() {
        if polls.elapsed() >= GRACE {
            abort(FAILED)
        }
        barrier = pending;
        polls.pause();
    }
    abort(FAILED)
}

/// The pauses between polls, in which a rank leaves the processor to others.
struct Polls {
    start: Instant,
    pause: Duration,
}

impl Polls {
    fn new() -> Self {
        Self { start: Instant::now(), pause: Duration::from_micros(10) }
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Sleeps twice as long as the time before, up to 10 ms.
    fn pause(&mut self) {
        thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(Duration::from_millis(10));
    }
}

/// Ends all processes of the job.
fn abort(code: i32) -> ! {
    SimpleCommunicator::world().abort(code)
}

/// Returns the message of a panic.
fn message(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(message), _) => message,
        (_, Some(message)) => message,
        _ => "no message",
    }
}
