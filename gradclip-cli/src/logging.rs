//! Logging to stderr, configured by `RUST_LOG`.

use std::env::{self, VarError};
use std::io::{self, Write as _};

use gradclip_measure::text::{escaped, shortened};

const FILTERS: &str = "RUST_LOG";
/// The maximum width of a warning, in columns.
const MAX_WARNING_WIDTH: usize = 200;
const STYLE: &str = "RUST_LOG_STYLE";

/// Starts the logger. Prints a warning if `RUST_LOG` is invalid, and ignores it.
pub(crate) fn start() {
    let mut builder = env_logger::Builder::new();
    match env::var(FILTERS) {
        // Parsed first: the logger reports errors through a macro that panics if stderr is closed or full.
        Ok(filters) => match env_filter::Builder::new().try_parse(&filters) {
            Ok(_) => {
                builder.parse_filters(&filters);
            }
            Err(error) => warn(&format!("{FILTERS}: {error}")),
        },
        Err(VarError::NotUnicode(_)) => warn(&format!("{FILTERS}: the value is not UTF-8")),
        Err(VarError::NotPresent) => {}
    }
    if let Ok(style) = env::var(STYLE) {
        builder.parse_write_style(&style);
    }
    builder.format(|buffer, record| {
        let (level, time) = (record.level(), buffer.timestamp());
        let style = buffer.default_level_style(level);
        write!(buffer, "[{time} {style}{level:<5}{style:#} {}]", escaped(record.target()))?;
        // Driver messages may have several lines. Other control characters are escaped.
        let message = record.args().to_string().replace('\t', "    ");
        message.lines().try_for_each(|line| writeln!(buffer, " {}", escaped(line)))
    });
    builder.init();
}

fn warn(message: &str) {
    let _ = writeln!(io::stderr(), "gradclip: ignoring {}", shortened(message, MAX_WARNING_WIDTH));
}
