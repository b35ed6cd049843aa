//! Faults of a driver: a lost device, and no memory. `vulkan_shim.c` wraps the Vulkan loader and fails on demand. The environment
//! decides which loader a process loads, so each scenario runs in a process of its own.
#![cfg_attr(target_os = "linux", expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

#[cfg(target_os = "linux")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_os = "linux")]
mod scenarios;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

/// Only on Linux does the environment decide which Vulkan loader a process loads.
#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these tests inject faults only on Linux");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::path::PathBuf;
    use std::process::{Command, ExitCode, Output};
    use std::sync::{Arc, LazyLock};
    use std::{env, fs};

    use libtest_mimic::{Arguments, Failed, Trial};
    use tempfile::TempDir;

    use crate::scenarios::{self, Scenario};

    /// The environment variable with the name of the scenario.
    const SCENARIO: &str = "GRADCLIP_FAULTS_SCENARIO";

    pub(crate) fn main() -> ExitCode {
        if let Some(name) = env::var_os(SCENARIO) {
            let scenario = scenarios::ALL.iter().find(|scenario| name == scenario.name);
            (scenario.expect("a scenario of this name").run)();
            return ExitCode::SUCCESS;
        }
        let loader = Arc::new(LazyLock::new(Loader::build));
        let trial = |scenario: &'static Scenario| {
            let loader = loader.clone();
            Trial::test(scenario.name, move || {
                loader.as_ref().as_ref().map_err(Failed::from)?.run_scenario(scenario)
            })
        };
        let mut trials: Vec<_> = scenarios::ALL.iter().map(trial).collect();
        if let Some(command) = option_env!("CARGO_BIN_EXE_gradclip") {
            let loader = loader.clone();
            let run = move || loader.as_ref().as_ref().map_err(Failed::from)?.run_command(command);
            trials.push(Trial::test("the_command_fails_in_one_line", run));
        }
        libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
    }

    /// The compiled shim, and the real loader.
    struct Loader {
        folder: TempDir,
        real: PathBuf,
    }

    impl Loader {
        fn build() -> Result<Self, String> {
            // Loads the real loader, whose path is then in the memory map.
            assert!(
                !gradclip::adapters::enumerate().is_empty(),
                "no adapter; scripts/test installs a software adapter"
            );
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            let mut paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
            let real =
                paths.find(|path| path.contains("/libvulkan.so")).ok_or("there is no Vulkan adapter")?;
            let folder = tempfile::tempdir().unwrap();
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/vulkan_shim.c");
            let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
            let compiled = Command::new(&compiler)
                .args(["-shared", "-fPIC", source, "-ldl", "-o"])
                .arg(folder.path().join("libvulkan.so.1"))
                .output()
                .map_err(|error| {
                    format!("{}, the C compiler that rustc links with: {error}", compiler.display())
                })?;
            if !compiled.status.success() {
                return Err(format!("{source}: {}", String::from_utf8_lossy(&compiled.stderr)));
            }
            Ok(Self { folder, real: real.into() })
        }

        /// Runs a command with the shim and with faults from the start.
        fn run(&self, mut command: Command, faults: &[&str]) -> Output {
            let folder = tempfile::tempdir().unwrap();
            for fault in faults {
                scenarios::begin(fault, folder.path());
            }
            let path = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            let first = self.folder.path().to_path_buf();
            let paths = env::join_paths([first].into_iter().chain(env::split_paths(&path))).unwrap();
            command.env("LD_LIBRARY_PATH", paths).env("REAL_VULKAN", &self.real);
            command.env(scenarios::FOLDER, folder.path()).output().unwrap()
        }

        fn run_scenario(&self, scenario: &Scenario) -> Result<(), Failed> {
            let mut command = Command::new(env::current_exe().unwrap());
            command.env(SCENARIO, scenario.name);
            let output = self.run(command, &[]);
            if output.status.success() { Ok(()) } else { Err(description(&output).into()) }
        }

        fn run_command(&self, command: &str) -> Result<(), Failed> {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/exploding_rnn.safetensors");
            for fault in ["lost", "submit", "pipeline", "buffer"] {
                let mut clip = Command::new(command);
                clip.args(["clip", file, "--device", "gpu", "--max-norm", "1"]);
                let output = self.run(clip, &[fault]);
                let message = String::from_utf8_lossy(&output.stderr);
                let last = message.lines().last().unwrap_or_default();
                if output.status.code() != Some(1)
                    || !output.stdout.is_empty()
                    || !last.starts_with("gradclip: ")
                {
                    return Err(format!("{fault}: {}", description(&output)).into());
                }
            }
            Ok(())
        }
    }

    fn description(output: &Output) -> String {
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        format!("{}\n{stdout}{stderr}", output.status)
    }
}
