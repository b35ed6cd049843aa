//! MPI jobs on this machine: every test starts `mpirun` with this binary as its program, which then runs one scenario on each
//! rank. A scenario checks its own results on every rank, and a failed check ends the job.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::unnecessary_wraps, reason = "all scenarios have the same signature")]

mod all_reduce;
mod clip;
mod device;
mod guard;
mod launcher;

use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use std::{env, process, thread};

use libtest_mimic::{Arguments, Failed, Trial};
use mpi::topology::SimpleCommunicator;

use crate::launcher::{LIFETIME, Launcher, SCENARIO};

/// What one rank of a job does.
struct Scenario {
    name: &'static str,
    /// The numbers of ranks to run it with.
    ranks: &'static [usize],
    run: fn(&SimpleCommunicator) -> Result<(), String>,
    end: End,
}

/// How the job of a scenario must end.
enum End {
    /// All ranks succeed, and rank 0 prints the same for every number of ranks.
    Passes,
    /// The launcher fails within ten seconds, with this code if it is known. These texts are on stderr; the launcher of MPICH may lose
    /// the last lines of a rank.
    Fails { code: Option<i32>, stderr: &'static [&'static str] },
    /// The job ends within ten seconds. The launcher of Open MPI fails; that of MPICH may not.
    FailsOnOpenMpi,
}

/// The environment variable with the largest number of ranks to test with: for MPI libraries whose ranks poll while they wait.
const MOST_RANKS: &str = "GRADCLIP_MPI_MOST_RANKS";

/// For a job that passes. It ends much earlier, except on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
/// For a job that fails: others must not wait for the failed rank.
const LIMIT_OF_FAILURE: Duration = Duration::from_secs(10);

fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    [all_reduce::SCENARIOS, guard::SCENARIOS, clip::SCENARIOS].into_iter().flatten()
}

fn main() -> ExitCode {
    if let Some(name) = env::var_os(SCENARIO) {
        let scenario = scenarios().find(|scenario| name == scenario.name).expect("a scenario of this name");
        end_after(Duration::from_secs(env::var(LIFETIME).unwrap().parse().unwrap()));
        gradclip_mpi::run(scenario.run);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // A job has several processes, and its time limit assumes that it has the machine to itself.
    arguments.test_threads.get_or_insert(1);
    let launcher = Arc::new(LazyLock::new(Launcher::find));
    let most = env::var(MOST_RANKS).map_or(usize::MAX, |most| most.parse().expect("a number of ranks"));
    let trial = |scenario: &'static Scenario| {
        let launcher = launcher.clone();
        let ranks: Vec<_> = scenario.ranks.iter().copied().filter(|&ranks| ranks <= most).collect();
        let is_left_out = ranks.is_empty();
        Trial::test(scenario.name, move || {
            check(launcher.as_ref().as_ref().map_err(Failed::from)?, scenario, &ranks)
        })
        .with_ignored_flag(is_left_out)
    };
    libtest_mimic::run(&arguments, scenarios().map(trial).collect()).exit_code()
}

/// Ends this process after `lifetime`.
fn end_after(lifetime: Duration) {
    thread::spawn(move || {
        thread::sleep(lifetime);
        eprintln!("this rank has outlived its job's time limit");
        process::abort();
    });
}

/// Runs the jobs of a scenario and compares their ends with the required one.
fn check(launcher: &Launcher, scenario: &Scenario, ranks: &[usize]) -> Result<(), Failed> {
    let fewest = ranks[0];
    let mut first: Option<String> = None;
    for &ranks in ranks {
        let failed = |message: &str| Failed::from(format!("{message}, with {ranks} ranks"));
        match scenario.end {
            End::Passes => {
                let outcome = launcher.run(scenario.name, ranks, LIMIT)?;
                if !outcome.passed() {
                    return Err(failed(&outcome.describe()));
                }
                let expected = first.get_or_insert_with(|| outcome.stdout.clone());
                if *expected != outcome.stdout {
                    return Err(failed(&format!(
                        "other results than with {fewest} ranks:\n{expected}\n---\n{}",
                        outcome.stdout
                    )));
                }
            }
            End::Fails { code, stderr } => {
                let outcome = launcher.run(scenario.name, ranks, LIMIT_OF_FAILURE)?;
                let ended = outcome.status.is_some() && !outcome.passed();
                let code_is_right = code.is_none() || outcome.status.and_then(|status| status.code()) == code;
                if !ended || !code_is_right {
                    return Err(failed(&format!(
                        "must fail within {LIMIT_OF_FAILURE:?} with code {code:?}: {}",
                        outcome.describe()
                    )));
                }
                let missing = stderr.iter().find(|text| !outcome.stderr.contains(**text));
                if let Some(text) = missing.filter(|_| launcher.is_open_mpi) {
                    return Err(failed(&format!("stderr must contain '{text}': {}", outcome.describe())));
                }
            }
            End::FailsOnOpenMpi => {
                let outcome = launcher.run(scenario.name, ranks, LIMIT_OF_FAILURE)?;
                if outcome.status.is_none() || (launcher.is_open_mpi && outcome.passed()) {
                    return Err(failed(&format!(
                        "must end within {LIMIT_OF_FAILURE:?}: {}",
                        outcome.describe()
                    )));
                }
            }
        }
    }
    Ok(())
}
