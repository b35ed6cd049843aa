//! The command on a failing driver prints a one-line error and exits with code 1. It never panics. The loader is that
//! of the library's `tests/faults`.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::Command;

#[path = "../../tests/faults/loader.rs"]
mod loader;

use loader::{Loader, description};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[test]
fn a_failing_driver_is_one_line_of_error() {
    let loader = Loader::build(&format!("{REPOSITORY}/tests/faults/vulkan_shim.c")).unwrap();
    let file = format!("{REPOSITORY}/examples/data/exploding_rnn.safetensors");
    for fault in ["lost", "submit", "pipeline", "buffer"] {
        let mut clip = Command::new(env!("CARGO_BIN_EXE_gradclip"));
        clip.args(["clip", &file, "--device", "gpu", "--max-norm", "1"]);
        let output = loader.run(clip, &[fault]);
        let message = String::from_utf8_lossy(&output.stderr);
        let last = message.lines().last().unwrap_or_default();
        let is_clean =
            output.status.code() == Some(1) && output.stdout.is_empty() && last.starts_with("gradclip: ");
        assert!(is_clean, "{fault}: {}", description(&output));
    }
}
