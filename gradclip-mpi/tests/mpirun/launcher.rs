//! Starts MPI jobs of this test binary, with a time limit.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, id};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

/// The environment variable with the name of the scenario that a rank runs.
pub(crate) const SCENARIO: &str = "GRADCLIP_MPI_SCENARIO";
/// The environment variable with the seconds after which a rank ends itself: the last resort against orphans.
pub(crate) const LIFETIME: &str = "GRADCLIP_MPI_LIFETIME";
/// The environment variable that replaces `mpirun`, for example by `mpirun.mpich`.
const LAUNCHER: &str = "GRADCLIP_MPIRUN";

/// How a job ended.
pub(crate) struct Outcome {
    /// `None` after the time limit.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) duration: Duration,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn passed(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Describes the outcome for the message of a failed test.
    pub(crate) fn describe(&self) -> String {
        let end = match self.status {
            Some(status) => status.to_string(),
            None => "stopped by the time limit".to_owned(),
        };
        let Self { duration, stdout, stderr, .. } = self;
        format!("{end} after {duration:.1?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// The launcher of the installed MPI library.
pub(crate) struct Launcher {
    program: String,
    pub(crate) is_open_mpi: bool,
}

impl Launcher {
    pub(crate) fn find() -> Result<Self, String> {
        let program = env::var(LAUNCHER).unwrap_or_else(|_| "mpirun".to_owned());
        let version = Command::new(&program).arg("--version").output().map_err(|error| {
            format!(
                "cannot start {program}: {error}. These tests need an MPI launcher: install Open MPI (on Debian: openmpi-bin and \
                 libopenmpi-dev), or set {LAUNCHER} to the launcher of another MPI library"
            )
        })?;
        let is_open_mpi = String::from_utf8_lossy(&version.stdout).contains("Open MPI");
        Ok(Self { program, is_open_mpi })
    }

    /// Runs a scenario on `ranks` processes and stops them after `limit`.
    pub(crate) fn run(&self, scenario: &str, ranks: usize, limit: Duration) -> io::Result<Outcome> {
        let [stdout, stderr] = ["stdout", "stderr"].map(output_file);
        let mut command = Command::new(&self.program);
        if self.is_open_mpi {
            // It refuses more ranks than cores otherwise.
            command.arg("--oversubscribe");
        }
        command.args(["-n", &ranks.to_string()]).arg(env::current_exe()?);
        command.env(SCENARIO, scenario).env(LIFETIME, (limit.as_secs() + 10).to_string());
        // Open MPI: permits root, for containers; binds no rank to a core, since the adapter has threads of its own; does not
        // need the permission to read another process's memory.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("OMPI_MCA_hwloc_base_binding_policy", "none");
        command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
        // Files and not pipes: a rank that outlives the launcher would keep a pipe open.
        command.stdout(fs::File::create(&stdout)?).stderr(fs::File::create(&stderr)?);
        let start = Instant::now();
        let mut job = command.process_group(0).spawn()?;
        let status = wait(&mut job, limit)?;
        let duration = start.elapsed();
        if status.is_none() {
            signal(&job, "TERM")?;
            if wait(&mut job, Duration::from_secs(5))?.is_none() {
                signal(&job, "KILL")?;
                job.wait()?;
            }
        }
        let [stdout, stderr] = [stdout, stderr].map(|path| {
            let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            fs::remove_file(path).and(text)
        });
        Ok(Outcome { status, duration, stdout: stdout?, stderr: stderr? })
    }
}

/// Returns a path for the output of a job that no other job uses.
fn output_file(stream: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("mpirun-{}-{count}.{stream}", id()))
}

/// Waits for the job until `limit`; `None` if it still runs.
fn wait(job: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        let status = job.try_wait()?;
        if status.is_some() || Instant::now() >= end {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal to the process group of the job. The launcher forwards TERM to its ranks.
fn signal(job: &Child, name: &str) -> io::Result<()> {
    Command::new("kill").args([&format!("-{name}"), "--", &format!("-{}", job.id())]).status().map(drop)
}
