//! Driver faults: a lost device and exhausted memory. `vulkan_shim.c` wraps the Vulkan loader and fails on demand. The
//! environment decides which loader a process loads, so each scenario runs in a separate process.
#![cfg_attr(target_os = "linux", expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

#[cfg(target_os = "linux")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_os = "linux")]
mod loader;
#[cfg(target_os = "linux")]
mod scenarios;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

/// On other systems the environment does not decide which Vulkan loader a process loads.
#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: these tests inject faults only on Linux");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::env;
    use std::process::{Command, ExitCode};
    use std::sync::{Arc, LazyLock};

    use libtest_mimic::{Arguments, Failed, Trial};

    use crate::loader::{Loader, description};
    use crate::scenarios::{self, Scenario};

    /// The environment variable with the name of the scenario.
    const SCENARIO: &str = "GRADCLIP_FAULTS_SCENARIO";

    const SHIM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/vulkan_shim.c");

    pub(crate) fn main() -> ExitCode {
        if let Some(name) = env::var_os(SCENARIO) {
            let scenario = scenarios::ALL.iter().find(|scenario| name == scenario.name);
            (scenario.expect("a scenario of this name").run)();
            return ExitCode::SUCCESS;
        }
        let loader = Arc::new(LazyLock::new(|| Loader::build(SHIM)));
        let trial = |scenario: &'static Scenario| {
            let loader = loader.clone();
            Trial::test(scenario.name, move || run(loader.as_ref().as_ref().map_err(Failed::from)?, scenario))
        };
        let trials = scenarios::ALL.iter().map(trial).collect();
        libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
    }

    fn run(loader: &Loader, scenario: &Scenario) -> Result<(), Failed> {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env(SCENARIO, scenario.name);
        let output = loader.run(command, &[]);
        if output.status.success() { Ok(()) } else { Err(description(&output).into()) }
    }
}
