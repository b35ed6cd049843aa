//! The `gradclip` command: which devices there are, clipped gradients from files of gradients, and how fast this
//! machine clips.
//!
//! It uses the public API only, so that it also shows how far that reaches.

mod bench;
mod clip;
mod devices;
mod file;
mod manner;
mod progress;
mod report;
mod stages;
mod table;
mod text;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Clips gradients, by norm or by value, on the GPU or the CPU.
///
/// `RUST_LOG` sets what is logged on stderr, as in `RUST_LOG=gradclip=debug`.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Clip(clip::Args),
    Bench(bench::Args),
    Devices(devices::Args),
}

fn main() -> ExitCode {
    env_logger::init();
    let report = match Cli::parse().command {
        Command::Clip(args) => clip::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Devices(args) => devices::run(&args),
    };
    match report.and_then(|text| print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever a driver has put into its message; and nobody is left to hear of a closed stderr.
            let message = format!("{error:#}").replace(['\n', '\r'], " ");
            let _ = writeln!(io::stderr(), "gradclip: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A reader that has seen enough, such as `head`, is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot print"),
    }
}
