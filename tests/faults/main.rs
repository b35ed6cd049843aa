//! What a driver may do: lose the device, run out of memory. `vulkan_shim.c` stands in front of the Vulkan loader and fails on
//! demand. The environment decides which loader a process loads, so each scenario is a process of its own.
#![cfg_attr(target_os = "linux", expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

#[cfg(target_os = "linux")]
mod scenarios;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

/// Only there does the environment say which Vulkan loader is loaded.
#[cfg(not(target_os = "linux"))]
fn main() {
    println!("not run: faults of a driver are injected on Linux only");
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

    /// Tells a process which scenario it is.
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
                loader.as_ref().as_ref().map_err(Failed::from)?.try_out(scenario)
            })
        };
        let mut trials: Vec<_> = scenarios::ALL.iter().map(trial).collect();
        if let Some(command) = option_env!("CARGO_BIN_EXE_gradclip") {
            let loader = loader.clone();
            let run = move || loader.as_ref().as_ref().map_err(Failed::from)?.try_out_command(command);
            trials.push(Trial::test("the_command_fails_in_one_line", run));
        }
        libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
    }

    /// The loader that fails on demand.
    struct Loader {
        folder: TempDir,
        real: PathBuf,
    }

    impl Loader {
        fn build() -> Result<Self, String> {
            // Enumerating loads the real one; then the system knows where it is.
            assert!(
                !gradclip::adapters::enumerate().is_empty(),
                "no adapter: scripts/test installs a software one"
            );
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            let mut paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
            let real =
                paths.find(|path| path.contains("/libvulkan.so")).ok_or("no adapter of Vulkan is here")?;
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

        /// A command that runs with this loader and with these faults from the start.
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

        fn try_out(&self, scenario: &Scenario) -> Result<(), Failed> {
            let mut command = Command::new(env::current_exe().unwrap());
            command.env(SCENARIO, scenario.name);
            let output = self.run(command, &[]);
            if output.status.success() { Ok(()) } else { Err(told(&output).into()) }
        }

        fn try_out_command(&self, command: &str) -> Result<(), Failed> {
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
                    return Err(format!("{fault}: {}", told(&output)).into());
                }
            }
            Ok(())
        }
    }

    fn told(output: &Output) -> String {
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        format!("{}\n{stdout}{stderr}", output.status)
    }
}
