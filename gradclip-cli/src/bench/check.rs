//! `gradclip bench --check`: reads saved JSON lines and reports each target as met or missed, in Markdown.

mod rated_bandwidth;
mod saved_lines;
mod tables;
mod targets;

use std::path::PathBuf;

use anyhow::Result;

use saved_lines::SavedLines;

/// Reads the files and returns the report. `rated` overrides the card's rated bandwidth, in GB/s.
///
/// Fails if a file cannot be read or has a line that no bench wrote.
pub(crate) fn report(files: &[PathBuf], rated: Option<f64>) -> Result<String> {
    let lines = SavedLines::read(files)?;
    let tables = [
        tables::heading(&lines),
        targets::table(&lines, rated),
        tables::gpu(&lines),
        tables::gpu_ratios(&lines),
        tables::separate(&lines),
        tables::steps(&lines),
        tables::pytorch(&lines, "gpu"),
        tables::host(&lines),
        tables::cpu(&lines),
        tables::threads(&lines),
        tables::pytorch(&lines, "cpu"),
        tables::commands(&lines),
    ];
    let tables: Vec<_> = tables.into_iter().filter(|table| !table.is_empty()).collect();
    Ok(tables.join("\n"))
}
