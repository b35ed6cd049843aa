//! The `gradclip` command: clips gradient files, measures how fast this machine clips, and lists its devices.
//!
//! It uses only the library's public API.

mod bench;
mod clip;
mod clip_options;
mod devices;
mod file;
mod glob;
mod logging;
mod plot;
mod progress;
mod report;
mod stages;
mod stdout;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};
use gradclip_measure::text::{WIDTH, shortened};

use stdout::Stdout;

/// The maximum width of an error message, in columns.
const MAX_MESSAGE_WIDTH: usize = 4000;

/// Clip gradients by norm or by value, on a GPU or the CPU
///
/// Set `RUST_LOG` to log to stderr, for example `RUST_LOG=gradclip=debug`.
#[derive(Parser)]
#[command(name = "gradclip", version)]
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
    logging::start();
    file::survive_file_size_limit();
    let mut out = Stdout::new();
    let result = match Cli::try_parse() {
        Ok(Cli { command: Command::Clip(args) }) => clip::run(&args, &mut out),
        Ok(Cli { command: Command::Bench(args) }) => bench::run(&args, &mut out),
        Ok(Cli { command: Command::Devices(args) }) => devices::run(&args, &mut out),
        Err(error) if error.use_stderr() => {
            // A failed write to stderr cannot be reported, here and below.
            let _ = sanitized(error).print();
            return ExitCode::from(2);
        }
        // `--help` or `--version`.
        Err(help) => stdout::ignore_broken_pipe(help.print().and_then(|()| io::stdout().flush()))
            .context(stdout::PRINT_FAILED),
    };
    // Output printed before a failure is kept.
    let flushed = out.flush().context(stdout::PRINT_FAILED);
    match result.and(flushed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "gradclip: {}", message(&error));
            ExitCode::FAILURE
        }
    }
}

/// Formats an error and its causes as one escaped line.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let lines = cause.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty());
        let cause = lines.collect::<Vec<_>>().join(" ");
        // Some errors repeat the message of their cause.
        if !message.contains(&cause) {
            message.extend([if message.is_empty() { "" } else { ": " }, &cause]);
        }
    }
    shortened(&message, MAX_MESSAGE_WIDTH)
}

/// Escapes and shortens the arguments that a usage error repeats.
fn sanitized(mut error: clap::Error) -> clap::Error {
    let context: Vec<_> = error.context().map(|(kind, value)| (kind, value.clone())).collect();
    for (kind, value) in context {
        let shorten = |text: &String| shortened(text, WIDTH);
        let short = match &value {
            ContextValue::String(text) => ContextValue::String(shorten(text)),
            ContextValue::Strings(texts) => ContextValue::Strings(texts.iter().map(shorten).collect()),
            _ => continue,
        };
        if short != value {
            error.insert(kind, short);
            // clap's suggestions repeat the argument in full.
            error.remove(ContextKind::Suggested);
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use gradclip_measure::text;

    use super::*;

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_is_not_repeated() {
        let region =
            gradclip::Error::Misaligned { gradient: 3.into(), what: "offset", given: 2, multiple: 4 };
        let error = anyhow::Error::new(gradclip::Error::InParameter { error: Box::new(region.clone()) });
        assert_eq!(message(&error), error.to_string());
        let error = anyhow::Error::new(region.clone()).context("cannot read g");
        assert_eq!(message(&error), format!("cannot read g: {region}"));
        let error = anyhow::anyhow!("Validation Error\n\nCaused by:\r\n  \u{1b}[31mno").context("a\tb");
        assert_eq!(message(&error), r"a\tb: Validation Error Caused by: \u{1b}[31mno");
    }

    #[test]
    fn usage_errors_escape_and_shorten_arguments() {
        let long = "x".repeat(100_000);
        for args in [
            &["\u{1b}[31mclip"][..],
            &["clip", "f", "--max-norm", "1\u{202e}"],
            &["clip", "f", "--max-norm", "1", "--groups", "\u{1b}[0m=x"],
            &["clip", "f", "--max-norm", "1", "--groups", "\u{1b}[0m=-1"],
            &["clip", "f", "--max-norm", "1", "--\u{7}x"],
            &["clip", "f", "--max-norm", "1", "--nonfinite", "\u{9b}skip"],
            &["devices", "\u{8}g"],
            &["clip", "f", "--max-norm", "1", "--groups", &long],
            &["clip", "f", "--max-norm", "1", &format!("--{long}")],
            &["bench", "--seconds", "\u{1b}c"],
        ] {
            let Err(error) = Cli::try_parse_from([&["gradclip"], args].concat()) else { panic!("{args:?}") };
            let text = sanitized(error).render().ansi().to_string();
            // Only clap's own colours remain.
            let plain = text.replace("\u{1b}[", "").replace('\n', "");
            assert_eq!(text::escaped(&plain), plain, "{args:?}");
            assert!(text.len() < 2000, "{args:?}: {} bytes", text.len());
        }
    }
}
