//! What is logged: as `RUST_LOG` says, on stderr.

use std::env::{self, VarError};
use std::io::{self, Write as _};

use gradclip_measure::text::{escaped, shortened};

const FILTERS: &str = "RUST_LOG";
/// The widest complaint, in columns.
const MAX_WARNING_WIDTH: usize = 200;
const STYLE: &str = "RUST_LOG_STYLE";

/// Starts the log. Filters that cannot be read are no reason to fail.
pub(crate) fn start() {
    let mut builder = env_logger::Builder::new();
    match env::var(FILTERS) {
        // Tried first, since the logger complains by a macro that panics where stderr is closed or full.
        Ok(filters) => match env_filter::Builder::new().try_parse(&filters) {
            Ok(_) => {
                builder.parse_filters(&filters);
            }
            Err(error) => warn(&format!("{FILTERS}: {error}")),
        },
        Err(VarError::NotUnicode(_)) => warn(&format!("{FILTERS}: it is not UTF-8")),
        Err(VarError::NotPresent) => {}
    }
    if let Ok(style) = env::var(STYLE) {
        builder.parse_write_style(&style);
    }
    builder.format(|buffer, record| {
        let (level, time) = (record.level(), buffer.timestamp());
        let style = buffer.default_level_style(level);
        write!(buffer, "[{time} {style}{level:<5}{style:#} {}]", escaped(record.target()))?;
        // A driver's message may have several lines, but nothing else that a terminal obeys.
        let message = record.args().to_string().replace('\t', "    ");
        message.lines().try_for_each(|line| writeln!(buffer, " {}", escaped(line)))
    });
    builder.init();
}

fn warn(message: &str) {
    let _ = writeln!(io::stderr(), "gradclip: ignoring {}", shortened(message, MAX_WARNING_WIDTH));
}
