//! The `gradclip` command: lists devices, clips files of gradients, and measures how fast this machine clips.
//!
//! It uses only the library's public API.

mod bench;
mod clip;
mod devices;
mod file;
mod logging;
mod manner;
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

/// The widest line of an error, in columns.
const MESSAGE: usize = 4000;

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
    let done = match Cli::try_parse() {
        Ok(Cli { command: Command::Clip(args) }) => clip::run(&args, &mut out),
        Ok(Cli { command: Command::Bench(args) }) => bench::run(&args, &mut out),
        Ok(Cli { command: Command::Devices(args) }) => devices::run(&args, &mut out),
        Err(error) if error.use_stderr() => {
            // Nobody is left to hear of a closed stderr, here and below.
            let _ = shown(error).print();
            return ExitCode::from(2);
        }
        // The text of `--help` or `--version`.
        Err(asked) => stdout::unless_nobody_reads(asked.print().and_then(|()| io::stdout().flush()))
            .context(stdout::FAILED),
    };
    // What a command printed before it failed is worth having, too.
    let flushed = out.flush().context(stdout::FAILED);
    match done.and(flushed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "gradclip: {}", message(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes in one line, whatever a driver or a file has put into them.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let lines = cause.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty());
        let cause = lines.collect::<Vec<_>>().join(" ");
        // Some errors say themselves what their cause says.
        if !message.contains(&cause) {
            message.extend([if message.is_empty() { "" } else { ": " }, &cause]);
        }
    }
    shortened(&message, MESSAGE)
}

/// An error about the arguments, with those that it repeats escaped and shortened.
fn shown(mut error: clap::Error) -> clap::Error {
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
            // Sentences of advice that repeat the argument in full.
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
    fn the_options_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_that_was_told_already_is_not_repeated() {
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
    fn arguments_come_back_escaped_and_short() {
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
            let text = shown(error).render().ansi().to_string();
            // The colours are those of clap, and none of them is a red or a reset in the argument.
            let plain = text.replace("\u{1b}[", "").replace('\n', "");
            assert_eq!(text::escaped(&plain), plain, "{args:?}");
            assert!(text.len() < 2000, "{args:?}: {} bytes", text.len());
        }
    }
}
