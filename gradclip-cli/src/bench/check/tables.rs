//! The report's sections besides the targets, in Markdown: the machines, and tables by set.

use gradclip_measure::ops::Op;
use gradclip_measure::report::{duration, significant};
use gradclip_measure::roofline::Roofline;
use gradclip_measure::timing::Workload;

use super::rated_bandwidth;
use super::saved_lines::{Host, Machine, Row, Run, SavedLines, Step, medians};

/// The operations with a column in the tables of times.
const SHOWN: [Op; 4] = [Op::Norm, Op::NotExceeded, Op::Exceeded, Op::Clamp];
/// The operations that are compared with PyTorch.
const COMPARED: [Op; 5] = [Op::Norm, Op::NotExceeded, Op::Exceeded, Op::Clamp, Op::LossScale];
const READ: &str = Workload::Roofline(Roofline::Read).name();
const IN_PLACE: &str = Workload::Roofline(Roofline::InPlace).name();

/// Formats a Markdown table, or returns an empty string for no rows.
pub(crate) fn markdown(heading: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let heading = heading.iter().map(|&cell| cell.to_owned()).collect();
    let rows: Vec<Vec<String>> = [heading].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!(" {cell:width$} "));
        format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
    };
    let rule: Vec<_> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    let body: String = rows[1..].iter().map(line).collect();
    format!("{}|{}|\n{body}", line(&rows[0]), rule.join("|"))
}

/// Formats a table under a heading, or returns an empty string for no rows.
fn section(title: &str, heading: &[&str], rows: Vec<Vec<String>>) -> String {
    let table = markdown(heading, rows);
    if table.is_empty() { table } else { format!("## {title}\n\n{table}") }
}

/// Formats the heading: card, driver, processor, versions and dates.
pub(crate) fn heading(lines: &SavedLines) -> String {
    let machines = lines.machines();
    let mut items = Vec::new();
    let mut item = |what: &str, values: Vec<String>| {
        if !values.is_empty() {
            items.push(format!("- {what}: {}\n", values.join("; ")));
        }
    };
    let each =
        |of: fn(&Machine) -> Option<String>| distinct(machines.iter().filter_map(|machine| of(machine)));
    let is_gradclip = |machine: &Machine| machine.library == "gradclip";
    item("GPU", each(card));
    item(
        "CPU",
        each(|machine| Some(format!("{}, {}", machine.cpu.as_ref()?, thread_count(machine.threads?)))),
    );
    item("versions", each(|machine| Some(format!("{} {}", machine.library, machine.version))));
    let mut times: Vec<u64> = machines.iter().filter_map(|machine| machine.unix_time).collect();
    times.sort_unstable();
    item("began", distinct(times.first().into_iter().chain(times.last()).map(|&time| date(time))));
    let software = machines.iter().any(|machine| machine.gpu_is_software == Some(true));
    let slow = machines.iter().any(|machine| is_gradclip(machine) && machine.optimized == Some(false));
    let wall = lines.rows().any(|(_, row)| row.is_gradclip() && row.path == "gpu" && row.clock != "gpu");
    let mut notes = String::new();
    for (is, note) in [
        (software, "This is a software adapter. Its times say nothing about GPU speed.\n"),
        (slow, "Built without optimisation. A release build is faster.\n"),
        (wall, "The adapter does not support timestamps in encoders: times are wall times of the host.\n"),
    ] {
        if is {
            notes.push('\n');
            notes.push_str(note);
        }
    }
    format!("# What was measured\n\n{}{notes}", items.concat())
}

/// Returns the adapter, its driver and, if known, its rated bandwidth.
fn card(machine: &Machine) -> Option<String> {
    let gpu = machine.gpu.as_ref().filter(|_| machine.library == "gradclip")?;
    Some(rated_bandwidth::of(gpu).map_or_else(|| gpu.clone(), |rated| format!("{gpu}, rated {rated} GB/s")))
}

/// `1 thread`, `2 threads`.
fn thread_count(threads: usize) -> String {
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}

/// Returns the distinct values, in order of first appearance.
fn distinct(values: impl Iterator<Item = String>) -> Vec<String> {
    let mut all = Vec::new();
    for value in values {
        if !all.contains(&value) {
            all.push(value);
        }
    }
    all
}

/// `2026-11-26 17:07 UTC`.
fn date(unix_time: u64) -> String {
    let (days, minutes) = (unix_time / 86_400, unix_time % 86_400 / 60);
    // Days since 1 March of the year 0, in eras of 400 years: the calendar's period.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + u64::from(month >= 10), (month + 2) % 12 + 1);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// Formats the commands of the machine lines.
pub(crate) fn commands(lines: &SavedLines) -> String {
    let quoted = |word: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=^:,".contains(c);
        if !word.is_empty() && word.chars().all(plain) { word.clone() } else { format!("'{word}'") }
    };
    let command = |machine: &&Machine| machine.command.iter().map(quoted).collect::<Vec<_>>().join(" ");
    let commands = distinct(lines.machines().iter().map(command).filter(|command| !command.is_empty()));
    if commands.is_empty() {
        return String::new();
    }
    format!("## Commands\n\n```sh\n{}\n```\n", commands.join("\n"))
}

/// Returns the median of a value over `rows`, or `None` if no row has it.
fn median<'a>(
    rows: impl Iterator<Item = (&'a Run, &'a Row)>,
    of: impl Fn(&Run, &Row) -> Option<f64>,
) -> Option<f64> {
    let values = rows.filter_map(|(run, row)| Some((String::new(), of(run, row)?)));
    medians(values).first().map(|(_, median)| *median)
}

/// Returns the distinct pairs of set and layout, in the order of the lines.
fn set_layouts(lines: &SavedLines, is: impl Fn(&Run, &Row) -> bool) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (_, row) in lines.rows().filter(|(run, row)| !row.is_roofline() && is(run, row)) {
        let name = (row.name(), row.layout.clone());
        if !pairs.contains(&name) {
            pairs.push(name);
        }
    }
    pairs
}

fn cell(value: Option<f64>, text: impl Fn(f64) -> String) -> String {
    value.map_or("-".into(), text)
}

/// Formats the median time, bandwidth and percent of the roofline of `rows`.
fn time_cell<'a>(rows: impl Iterator<Item = (&'a Run, &'a Row)>) -> String {
    let rows: Vec<_> = rows.collect();
    let rows = || rows.iter().copied();
    let [seconds, rate, percent] = [
        median(rows(), |_, row| Some(row.seconds)),
        median(rows(), |_, row| Some(row.gb_per_s)),
        median(rows(), |_, row| row.percent_of_roofline),
    ];
    let parts = [
        seconds.map(duration),
        rate.map(|rate| format!("{} GB/s", significant(rate))),
        percent.map(|percent| format!("{percent:.0} %")),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "-".into() } else { parts.join(", ") }
}

/// Formats the GPU path's times, bandwidths and percents of the roofline by set and layout.
pub(crate) fn gpu(lines: &SavedLines) -> String {
    by_set(lines, "On the GPU: time, GB/s, percent of the roofline", |_, row| row.path == "gpu")
}

/// Formats the same table for the CPU path, from the runs with the most threads.
pub(crate) fn cpu(lines: &SavedLines) -> String {
    let most = most_threads(lines);
    let is = move |run: &Run, row: &Row| row.path == "cpu" && run.threads() == most;
    let threads = most.map_or(String::new(), |most| format!(" with {}", thread_count(most)));
    by_set(lines, &format!("On the CPU{threads}: time, GB/s, percent of the roofline"), is)
}

fn most_threads(lines: &SavedLines) -> Option<usize> {
    lines
        .rows()
        .filter(|(_, row)| row.path == "cpu" && row.is_gradclip())
        .filter_map(|(run, _)| run.threads())
        .max()
}

fn by_set(lines: &SavedLines, title: &str, is: impl Fn(&Run, &Row) -> bool + Copy) -> String {
    let selects = |run: &Run, row: &Row| row.is_gradclip() && is(run, row);
    let row = |(name, layout): (String, String)| {
        let of = |operation: &'static str| {
            let (name, layout) = (name.clone(), layout.clone());
            lines.rows().filter(move |(run, row)| {
                let layouts = row.layout == layout || row.is_roofline();
                selects(run, row) && row.name() == name && layouts && row.operation == operation
            })
        };
        let rate = |operation| cell(median(of(operation), |_, row| Some(row.gb_per_s)), significant);
        let mut cells = vec![name.clone(), layout.clone(), rate(READ), rate(IN_PLACE)];
        cells.extend(SHOWN.map(|op| time_cell(of(op.name()))));
        cells
    };
    let rows = set_layouts(lines, selects).into_iter().map(row).collect();
    let heading = ["gradients", "layout", "read", "in place", "norm", "not exceeded", "exceeded", "clamp"];
    section(title, &heading, rows)
}

/// Formats the time ratios of operations on the GPU by set and layout.
pub(crate) fn gpu_ratios(lines: &SavedLines) -> String {
    let selects = |_: &Run, row: &Row| row.is_gradclip() && row.path == "gpu";
    let row = |(name, layout): (String, String)| {
        let of = |op: Op| {
            let (name, layout) = (name.clone(), layout.clone());
            lines.rows().filter(move |(run, row)| {
                selects(run, row) && row.name() == name && row.layout == layout && row.operation == op.name()
            })
        };
        let ratios = [
            median(of(Op::NotExceeded), |run, row| run.over(row, Op::Norm.name())),
            median(of(Op::CoefficientOnly), |run, row| run.over(row, Op::Norm.name())),
            median(of(Op::Exceeded), |run, row| run.over_both(row, Op::Norm.name(), IN_PLACE)),
            median(of(Op::LossScale), |run, row| run.over(row, Op::Exceeded.name())),
        ];
        let ratios = ratios.map(|ratio| cell(ratio, |ratio| format!("{ratio:.3}")));
        [name, layout].into_iter().chain(ratios).collect()
    };
    let rows = set_layouts(lines, selects).into_iter().map(row).collect();
    let heading = [
        "gradients",
        "layout",
        "not exceeded / norm",
        "coefficient only / norm",
        "exceeded / (norm + in place)",
        "loss scale / exceeded",
    ];
    section("Ratios of operations on the GPU", &heading, rows)
}

/// Formats the time with separate buffers, bound separately or as an array, over the time with an arena, by set and operation.
pub(crate) fn separate(lines: &SavedLines) -> String {
    let selects =
        |_: &Run, row: &Row| row.is_gradclip() && matches!(row.layout.as_str(), "separate" | "array");
    let row = |(name, layout): (String, String)| {
        let ratio = |op: Op| {
            let rows = lines.rows().filter(|(run, row)| {
                let is_same = row.name() == name && row.layout == layout;
                selects(run, row) && is_same && row.operation == op.name()
            });
            let ratio = median(rows, |run, row| {
                Some(row.seconds / run.find_same_set(row, "arena", op.name())?.seconds)
            });
            cell(ratio, |ratio| format!("{ratio:.3}"))
        };
        let ratios = Op::ALL.map(ratio);
        [name, layout].into_iter().chain(ratios).collect()
    };
    let rows = set_layouts(lines, selects).into_iter().map(row).collect();
    let heading: Vec<_> = ["gradients", "layout"].into_iter().chain(Op::ALL.map(Op::name)).collect();
    section("Separate buffers / one arena", &heading, rows)
}

/// Formats the training steps: time, the clip's share of it, and what the clip costs.
pub(crate) fn steps(lines: &SavedLines) -> String {
    let row = |step: &Step| {
        let Step { set, tensors, tensors_of_model: of, .. } = step;
        let cut = if tensors == of { String::new() } else { format!(", {tensors} of {of} tensors") };
        vec![
            format!("{set}{cut}"),
            step.way.clone(),
            duration(step.seconds),
            cell(step.clip_share, |share| format!("{:.1} %", 100.0 * share)),
            step.clip_dispatches.to_string(),
            step.clip_bytes.to_string(),
        ]
    };
    let rows = lines.runs.iter().flat_map(|run| &run.steps).map(row).collect();
    let heading = ["gradients", "step", "time", "clip's share", "clip's dispatches", "clip's bytes"];
    section("A training step on the GPU", &heading, rows)
}

/// Formats PyTorch's times over gradclip's, with foreach on and off.
pub(crate) fn pytorch(lines: &SavedLines, path: &str) -> String {
    let values = |foreach: bool, op: Op| {
        let rows = lines.rows().filter(move |(_, row)| {
            row.is_pytorch() && row.path == path && row.foreach == Some(foreach) && row.operation == op.name()
        });
        let ratios = rows.flat_map(|(run, row)| lines.over_gradclip(run, row));
        medians(ratios.map(|(row, ratio)| (format!("{} | {}", row.name(), row.layout), ratio)))
    };
    let all = COMPARED.map(|op| [values(true, op), values(false, op)]);
    let sets = distinct(all.iter().flatten().flatten().map(|(name, _)| name.clone()));
    let row = |name: String| {
        let find = |values: &Vec<(String, f64)>| {
            let found = values.iter().find(|(other, _)| *other == name).map(|(_, ratio)| *ratio);
            cell(found, |ratio| format!("{ratio:.2}"))
        };
        let cells = all.iter().map(|forms| forms.each_ref().map(find).join(", "));
        let name = name.split(" | ").map(str::to_owned);
        name.chain(cells).collect()
    };
    let rows = sets.into_iter().map(row).collect();
    let machines = lines.machines().into_iter().filter(|machine| machine.library == "pytorch");
    let versions = distinct(machines.map(|machine| machine.version.clone())).join(" and ");
    let where_ = if path == "gpu" { "GPU" } else { "CPU" };
    let title = format!("PyTorch {versions} / gradclip on the {where_}: foreach, loop");
    let heading = ["gradients", "layout", "norm", "not exceeded", "exceeded", "clamp", "unscale and clip"];
    section(&title, &heading, rows)
}

/// Formats the times of the host bench.
pub(crate) fn host(lines: &SavedLines) -> String {
    let row = |host: &Host| {
        let times = [host.encode_seconds, host.ready_seconds, host.prepare_seconds].map(duration);
        let counts = [host.buffers, host.dispatches].map(|count| count.to_string());
        [host.gpu.clone()].into_iter().chain(counts).chain(times).collect()
    };
    let rows = lines.hosts.iter().map(row).collect();
    let heading = ["adapter", "buffers", "dispatches", "encode", "ready", "prepare again"];
    section("Host times", &heading, rows)
}

/// Formats the CPU path's times by number of threads, for sets that were measured with several.
pub(crate) fn threads(lines: &SavedLines) -> String {
    let selects = |row: &Row| row.is_gradclip() && row.path == "cpu";
    let mut counts: Vec<usize> =
        lines.rows().filter(|(_, row)| selects(row)).filter_map(|(run, _)| run.threads()).collect();
    counts.sort_unstable();
    counts.dedup();
    let mut rows = Vec::new();
    for (name, _) in set_layouts(lines, |_, row| selects(row)) {
        for op in SHOWN {
            let of = |threads: usize| {
                let name = name.clone();
                lines.rows().filter(move |(run, row)| {
                    let same = selects(row) && row.name() == name && row.operation == op.name();
                    same && run.threads() == Some(threads)
                })
            };
            if counts.iter().filter(|&&threads| of(threads).next().is_some()).count() > 1 {
                let cells = counts.iter().map(|&threads| time_cell(of(threads)));
                rows.push([name.clone(), op.name().into()].into_iter().chain(cells).collect());
            }
        }
    }
    let counts: Vec<_> = counts.into_iter().map(thread_count).collect();
    let heading: Vec<&str> =
        ["gradients", "operation"].into_iter().chain(counts.iter().map(|text: &String| &**text)).collect();
    section(
        "On the CPU by threads: time, GB/s, percent of the roofline with the same threads",
        &heading,
        rows,
    )
}

#[cfg(test)]
mod tests {
    use super::{date, markdown};

    #[test]
    fn dates_match_the_calendar() {
        for (unix_time, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_795_712_822, "2026-11-26 17:07 UTC"),
            (1_798_761_599, "2026-12-31 23:59 UTC"),
        ] {
            assert_eq!(date(unix_time), text);
        }
    }

    #[test]
    fn a_table_without_rows_is_empty() {
        assert_eq!(markdown(&["a"], Vec::new()), "");
        assert_eq!(
            markdown(&["a", "b"], vec![vec!["µs".into(), String::new()]]),
            "| a  | b |\n|----|---|\n| µs |   |\n"
        );
    }
}
