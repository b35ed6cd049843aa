//! `gradclip_mpi::run`: a rank that fails, panics or dies ends the job.

use std::panic::resume_unwind;
use std::process::{Command, exit, id};
use std::thread;
use std::time::Duration;

use mpi::collective::SystemOperation;
use mpi::request::WaitGuard;
use mpi::topology::{Color, SimpleCommunicator};
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Source};

use crate::{End, Scenario};

const PANICKED: End = End::Fails { code: Some(101), stderr: &["the message of this test", "rank 1 of"] };

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "guard::success", ranks: &[1, 2, 4], run: success, end: End::Passes },
    Scenario { name: "guard::ranks_end_at_different_times", ranks: &[3], run: late, end: End::Passes },
    Scenario { name: "guard::panic", ranks: &[2, 4], run: panic, end: PANICKED },
    Scenario {
        name: "guard::panic_with_a_message_in_flight",
        ranks: &[2],
        run: panic_in_flight,
        end: PANICKED,
    },
    Scenario { name: "guard::panic_of_another_thread", ranks: &[2], run: panic_of_thread, end: PANICKED },
    Scenario { name: "guard::handled_panic_of_another_thread", ranks: &[2], run: handled, end: End::Passes },
    Scenario {
        name: "guard::error",
        ranks: &[2, 4],
        run: error,
        end: End::Fails { code: Some(1), stderr: &["rank 1 of", "error: the message of this test"] },
    },
    Scenario {
        name: "guard::error_of_a_job_of_one",
        ranks: &[1],
        run: |_| Err("the message of this test".to_owned()),
        end: End::Fails { code: Some(1), stderr: &["rank 0 of 1: error: the message of this test"] },
    },
    Scenario {
        name: "guard::killed",
        ranks: &[2, 4],
        run: killed,
        end: End::Fails { code: None, stderr: &[] },
    },
    Scenario { name: "guard::exit_0", ranks: &[2, 3], run: exit_0, end: End::FailsOnOpenMpi },
];

/// Waits until rank 1, the one that fails, gets here too: never.
fn others_wait(world: &SimpleCommunicator) -> Result<(), String> {
    world.barrier();
    Err("rank 1 did not fail".to_owned())
}

fn success(world: &SimpleCommunicator) -> Result<(), String> {
    world.barrier();
    if world.rank() == 0 {
        println!("done");
    }
    Ok(())
}

/// Rank 1 returns at once. The others go on, with a communicator of their own.
fn late(world: &SimpleCommunicator) -> Result<(), String> {
    let others = world.split_by_color(Color::with_value(i32::from(world.rank() == 1))).unwrap();
    if world.rank() == 1 {
        return Ok(());
    }
    for step in 1..=20 {
        thread::sleep(Duration::from_millis(50));
        let mut sum = 0;
        others.all_reduce_into(&step, &mut sum, SystemOperation::sum());
        assert_eq!(sum, 2 * step);
    }
    Ok(())
}

fn panic(world: &SimpleCommunicator) -> Result<(), String> {
    assert!(world.rank() != 1, "the message of this test");
    others_wait(world)
}

/// Unwinding would wait forever for the message.
fn panic_in_flight(world: &SimpleCommunicator) -> Result<(), String> {
    if world.rank() != 1 {
        return others_wait(world);
    }
    let mut message = 0_u8;
    mpi::request::scope(|scope| {
        let _received = WaitGuard::from(world.process_at_rank(0).immediate_receive_into(scope, &mut message));
        panic!("the message of this test");
    })
}

/// The panic passes the hook on its own thread, and reaches the thread of MPI without the hook.
fn panic_of_thread(world: &SimpleCommunicator) -> Result<(), String> {
    if world.rank() == 1 {
        let panicked = thread::spawn(|| panic!("the message of this test")).join();
        resume_unwind(panicked.unwrap_err());
    }
    others_wait(world)
}

fn handled(world: &SimpleCommunicator) -> Result<(), String> {
    if world.rank() == 1 {
        thread::spawn(|| panic!("a panic that the program handles")).join().unwrap_err();
        world.process_at_rank(0).send(&7_i32);
    } else {
        assert_eq!(world.process_at_rank(1).receive::<i32>().0, 7);
    }
    Ok(())
}

fn error(world: &SimpleCommunicator) -> Result<(), String> {
    if world.rank() == 1 {
        return Err("the message of this test".to_owned());
    }
    others_wait(world)
}

fn killed(world: &SimpleCommunicator) -> Result<(), String> {
    if world.rank() == 1 {
        Command::new("kill")
            .args(["-KILL", &id().to_string()])
            .status()
            .map_err(|error| error.to_string())?;
    }
    others_wait(world)
}

fn exit_0(world: &SimpleCommunicator) -> Result<(), String> {
    if world.rank() == 1 {
        exit(0);
    }
    others_wait(world)
}
