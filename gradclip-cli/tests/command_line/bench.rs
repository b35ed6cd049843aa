//! `gradclip bench`: rows are complete and their numbers are consistent. The measured speed is not tested.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{assert_fails, command};

/// Arguments that are quick even on a software adapter: every row has the minimum number of repetitions.
const QUICK: [&str; 6] = ["bench", "--seconds", "0", "--cold-bytes", "1MiB", "--json"];

fn lines(args: &[&str]) -> Vec<Value> {
    let output = command(&[&QUICK, args].concat()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["kind"] == kind).collect()
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row} is no number"))
}

fn names<'a>(rows: &[&'a Value], key: &str) -> BTreeSet<&'a str> {
    rows.iter().map(|row| row[key].as_str().unwrap()).collect()
}

const OPERATIONS: [(&str, f64); 6] = [
    ("norm", 1.0),
    ("clip not exceeded", 1.0),
    ("clip exceeded", 3.0),
    ("coefficient only", 1.0),
    ("clamp", 2.0),
    ("loss scale", 3.0),
];

/// Covers both paths, and every operation and layout. The numbers of a row are consistent as documented.
#[test]
fn rows_are_complete_and_consistent() {
    let lines =
        lines(&["--device", "gpu", "--max-bytes", "256KiB", "--only", "2^12", "--only", "/resnet50/f32"]);
    let (rows, rooflines) = (of_kind(&lines, "operation"), of_kind(&lines, "roofline"));
    assert_eq!(names(&rows, "set"), BTreeSet::from(["2^12", "resnet50"]));
    assert_eq!(names(&rows, "layout"), BTreeSet::from(["arena", "separate", "slices"]));
    // A single tensor has the layouts arena and slices; several tensors also have separate.
    assert_eq!((rows.len(), rooflines.len()), ((2 + 3) * OPERATIONS.len(), 2 * 2 * 3));

    let roofline = |row: &Value, name: &str| {
        let same = |other: &&&Value| {
            ["path", "set"].iter().all(|key| other[key] == row[key]) && other["operation"] == name
        };
        number(rooflines.iter().find(same).unwrap(), "seconds")
    };
    for row in rows.iter().chain(&rooflines) {
        let [seconds, low, high] = ["seconds", "seconds_low", "seconds_high"].map(|key| number(row, key));
        assert!(low > 0.0 && low <= seconds && seconds <= high, "{row}");
        assert!(number(row, "repetitions") >= 3.0, "{row}");
        let rate = number(row, "bytes") / seconds / 1e9;
        assert!((number(row, "gb_per_s") / rate - 1.0).abs() < 1e-9, "{row}");
        let percent = 100.0 * number(row, "roofline_seconds") / seconds;
        assert!((number(row, "percent_of_roofline") / percent - 1.0).abs() < 1e-9, "{row}");
        assert_eq!(row["cached"], false, "{row}");
        if row["path"] == "gpu" {
            let [encode, ready] = ["encode_seconds", "ready_seconds"].map(|key| number(row, key));
            assert!(0.0 < encode && encode <= ready && ready <= number(row, "wall_seconds"), "{row}");
        } else {
            assert_eq!((&row["wall_seconds"], row["clock"].as_str()), (&row["seconds"], Some("wall")));
        }
    }
    for row in rows {
        let (name, passes) = OPERATIONS.into_iter().find(|(name, _)| row["operation"] == *name).unwrap();
        assert_eq!(number(row, "bytes"), passes * 4.0 * number(row, "elements"), "{row}");
        let expected = match name {
            "clamp" => roofline(row, "roofline: in place"),
            "clip exceeded" | "loss scale" => {
                roofline(row, "roofline: read") + roofline(row, "roofline: in place")
            }
            _ => roofline(row, "roofline: read"),
        };
        // serde_json may misread the last bit of a number.
        assert!((number(row, "roofline_seconds") / expected - 1.0).abs() < 1e-12, "{row}");
        if row["path"] == "gpu" {
            assert!(number(row, "dispatches") >= 1.0 && number(row, "prepare_seconds") > 0.0, "{row}");
            let bound = 0.001 * 4.0 * number(row, "elements") + 65536.0;
            assert!(number(row, "scratch_bytes") <= bound, "{row}");
        }
    }
}

/// The command itself checks the results of each way. Counts are exact on every adapter; times are consistent.
#[test]
fn steps_clip_in_every_way() {
    let lines = lines(&["--device", "gpu", "--max-bytes", "4MiB", "--only", "/step/"]);
    let rows = of_kind(&lines, "step");
    assert_eq!((rows.len(), lines.len()), (3 * 5, 3 * 5 + 1));
    let [machine] = of_kind(&lines, "machine")[..] else { panic!("one machine") };
    let of = |set: &str, step: &str| {
        *rows.iter().find(|row| row["set"] == set && row["step"] == step).expect("every set has every step")
    };
    for (set, tensors, runs) in [("2^14", 1.0, 4.0), ("2^20", 1.0, 256.0), ("32x2^19", 2.0, 256.0)] {
        let bytes = 4.0 * number(of(set, "parts"), "elements");
        assert_eq!(number(of(set, "parts"), "tensors"), tensors);
        let without = number(of(set, "without clip"), "seconds");
        for (step, expected) in [
            ("without clip", 0.0),
            ("plain clip", 3.0 * bytes),
            ("coefficient", bytes),
            ("parts", bytes),
            ("partials", 8.0 * runs),
        ] {
            let row = of(set, step);
            assert_eq!(number(row, "clip_bytes"), expected, "{row}");
            let seconds = number(row, "seconds");
            assert!(0.0 < seconds && number(row, "repetitions") >= 3.0, "{row}");
            if machine["gpu_is_software"] == true {
                assert_eq!(row["clip_share"], Value::Null, "{row}");
            } else {
                assert!((number(row, "clip_share") - (seconds - without) / seconds).abs() < 1e-9, "{row}");
            }
        }
        let dispatches = |step| number(of(set, step), "clip_dispatches");
        assert_eq!(dispatches("without clip"), 0.0);
        // One for each part and one for the record; with partials only that of the record.
        assert_eq!((dispatches("parts"), dispatches("partials")), (tensors + 1.0, 1.0), "{set}");
        assert!(dispatches("coefficient") < dispatches("plain clip") || dispatches("plain clip") == 1.0);
    }
}

/// A selected way also has the step without a clip. The saved lines have a table in the report of `--check`.
#[test]
fn selected_steps_are_printed_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let save = folder.path().join("rows.jsonl");
    let args = ["bench", "--seconds", "0", "--device", "gpu", "--only", "step/2^14/parts", "--save"];
    let output = command(&args).arg(&save).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    for name in ["step, without clip", "step, parts", "clip's dispatches"] {
        assert!(table.contains(name), "{name} is not in {table}");
    }
    for name in ["step, partials", "roofline: read", "2^20"] {
        assert!(!table.contains(name), "{name} was not selected: {table}");
    }
    let software = table.contains("software adapter. Its times say nothing about GPU speed");
    let counts = "On a software adapter only the clip's dispatches and bytes are results.";
    assert_eq!(table.contains(counts), software, "{table}");

    let output = command(&["bench", "--check"]).arg(&save).output().unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && report.contains("- GPU: "), "{report}");
    let (_, steps) = report.split_once("## A training step on the GPU").expect("a table of steps");
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let parts = steps.lines().map(cells).find(|cells| cells.get(2).is_some_and(|step| step == "parts"));
    let parts = parts.expect("a row of the selected way");
    assert_eq!((&*parts[1], &*parts[5], &*parts[6]), ("2^14", "2", "65536"), "{report}");
    assert_eq!(parts[4] == "-", software, "{report}");
}

#[test]
fn ratios_follow_from_the_rows() {
    let lines = lines(&["--device", "cpu", "--max-bytes", "64KiB", "--only", "2^14"]);
    let seconds =
        |name: &str| number(lines.iter().find(|line| line["operation"] == name).unwrap(), "seconds");
    let [ratios] = of_kind(&lines, "ratios")[..] else { panic!("{lines:?}") };
    let in_place = seconds("roofline: in place");
    for (name, expected) in [
        ("not exceeded / norm", seconds("clip not exceeded") / seconds("norm")),
        ("coefficient only / norm", seconds("coefficient only") / seconds("norm")),
        ("exceeded / (norm + in place)", seconds("clip exceeded") / (seconds("norm") + in_place)),
        ("clamp / in place", seconds("clamp") / in_place),
        ("loss scale / exceeded", seconds("loss scale") / seconds("clip exceeded")),
    ] {
        assert!((number(ratios, name) / expected - 1.0).abs() < 1e-12, "{name}");
    }
    assert_eq!(ratios["norm: separate / arena"], Value::Null, "the CPU path has one layout");
}

/// Models and 16-bit types are cut to fit. The command itself checks the results.
#[test]
fn sets_are_cut_to_fit() {
    let lines = lines(&["--device", "cpu", "--max-bytes", "2MiB", "--only", "clip exceeded"]);
    let rows = of_kind(&lines, "operation");
    assert_eq!(
        names(&rows, "set"),
        BTreeSet::from(["2^10", "2^12", "2^14", "2^16", "2^18", "resnet50", "1000x4096"])
    );
    for row in rows {
        let model = row["tensors_of_model"].as_u64().unwrap();
        let tensors = row["tensors"].as_u64().unwrap();
        assert!(row["elements"].as_u64().unwrap() * 4 <= 2 << 20, "{row}");
        assert!(if model == 1 { tensors == 1 } else { tensors < model }, "{row}");
    }
}

#[test]
fn the_table_names_the_software_adapter_and_the_plot_is_an_svg() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("plot.svg");
    let args = ["bench", "--seconds", "0", "--cold-bytes", "1MiB", "--max-bytes", "64KiB", "--device", "gpu"];
    let save = folder.path().join("rows.jsonl");
    let mut command_line = command(&args);
    command_line.args(["--only", "2^1*/clip exceeded", "--plot"]).arg(&plot).arg("--save").arg(&save);
    let output = command_line.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    let software = table.contains("software adapter. Its times say nothing about GPU speed");
    let devices: Value =
        serde_json::from_slice(&command(&["devices", "--json"]).output().unwrap().stdout).unwrap();
    assert_eq!(devices["adapters"][0]["software"], software, "{table}");
    for name in ["roofline: read", "clip exceeded", "encode", "scratch", "wins", "for the smallest"] {
        assert!(table.contains(name), "{name} is not in {table}");
    }
    assert!(!table.contains("coefficient only  "), "the row was not selected: {table}");

    let saved = fs::read_to_string(&save).unwrap();
    let saved: Vec<Value> = saved.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rows = of_kind(&saved, "operation");
    assert_eq!((names(&rows, "path"), rows.len()), (BTreeSet::from(["cpu", "gpu"]), 2 * 3));
    // The machine line records where the file comes from.
    let [machine] = of_kind(&saved, "machine")[..] else { panic!("one machine") };
    let command: Vec<_> =
        machine["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(command[..2], ["gradclip", "bench"]);
    assert!(command.contains(&"2^1*/clip exceeded"), "{command:?}");
    assert!(number(machine, "unix_time") > 1.7e9 && machine["gpu"].is_string());

    let svg = fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    for text in ["CPU, wall time", "GPU, GPU clock", "2^10", "2^12", "%", "polyline"] {
        assert!(svg.contains(text), "{text} is not in {svg}");
    }
}

/// The lines of a set are saved before the next set is measured, so that an interrupted run keeps them.
#[test]
fn lines_are_saved_set_by_set() {
    let folder = tempfile::tempdir().unwrap();
    let save = folder.path().join("rows.jsonl");
    let args =
        ["bench", "--seconds", "0", "--device", "cpu", "--only", "2^10/f32", "--only", "2^24/f32", "--save"];
    let mut bench = command(&args).arg(&save).stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    // Up to the end of a line: a process that is killed in the middle of a write leaves half a line.
    let is_saved = |saved: String| saved.contains("2^10\"") && saved.ends_with('\n');
    while Instant::now() < deadline && !fs::read_to_string(&save).is_ok_and(is_saved) {
        thread::sleep(Duration::from_millis(1));
    }
    bench.kill().unwrap();
    bench.wait().unwrap();
    // Read again: the next set may have been saved since.
    let saved = fs::read_to_string(&save).unwrap();
    let saved: Vec<Value> = saved.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(saved[0]["kind"], "machine");
    assert_eq!(names(&of_kind(&saved, "operation"), "set"), BTreeSet::from(["2^10"]));
}

/// The report has a row for every target: its values, or the reason why it was not measured.
#[test]
fn saved_lines_are_checked_against_the_targets() {
    let folder = tempfile::tempdir().unwrap();
    let save = folder.path().join("rows.jsonl");
    let args =
        ["--device", "gpu", "--max-bytes", "1MiB", "--only", "2^18/f32", "--only", "resnet50", "--save"];
    let mut bench = command(&[&QUICK[..], &args[..]].concat());
    assert!(bench.arg(&save).output().unwrap().status.success());
    let empty = folder.path().join("empty.jsonl");
    fs::write(&empty, "").unwrap();
    let output = command(&["bench", "--check"]).arg(&save).arg(&empty).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report = String::from_utf8(output.stdout).unwrap();
    let row = |what: &str| {
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let mut rows = report.lines().map(cells).filter(|cells| cells.len() == 6);
        rows.find(|cells| cells[1] == what).unwrap_or_else(|| panic!("no {what} in {report}"))
    };
    assert!(row("scratch, of 0.1 % of as many f32 and 64 KiB")[3].contains("2^18 f32"), "{report}");
    assert_eq!(row("scratch, of 0.1 % of as many f32 and 64 KiB")[4], "met");
    assert!(row("encode, one arena")[3].contains(" µs ("), "{report}");
    let large = "not measured: no line of `gradclip bench` on a GPU measures a set of 64 MiB or more";
    assert_eq!(row("norm, of the read roofline")[3], large);
    let absent = "not measured: no lines of `compare.py --device cuda`";
    assert_eq!(row("PyTorch foreach / gradclip, clamp")[3..5], [absent, "-"]);
    for part in ["- GPU: ", "- began: 20", "## On the GPU", "## On the CPU", "gradclip bench --seconds 0"] {
        assert!(report.contains(part), "{part} is not in {report}");
    }
}

#[test]
fn lines_that_cannot_be_checked_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good.jsonl"), folder.path().join("bad.jsonl"));
    fs::write(&good, "{\"kind\":\"ratios\"}\n").unwrap();
    fs::write(&bad, "{\"kind\":\"ratios\"}\n{\"kind\":\"oper").unwrap();
    for (args, named) in [
        (vec![good.clone(), bad], "bad.jsonl, line 2"),
        (vec![folder.path().join("none.jsonl")], "none.jsonl"),
        (vec![good.clone(), "--rated".into(), "0".into()], "--rated"),
        (vec![good.clone(), "--rated".into(), "NaN".into()], "--rated"),
    ] {
        let output = command(&["bench", "--check"]).args(&args).output().unwrap();
        let message = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(!output.status.success() && message.contains(named), "{args:?}: {message}");
        assert_eq!(output.stdout, b"", "{args:?}");
    }
    let both = command(&["bench", "--json", "--check"]).arg(&good).output().unwrap();
    assert!(!both.status.success(), "--check conflicts with --json: {both:?}");
}

#[test]
fn selections_and_outputs_are_checked_before_measuring() {
    for (args, named) in [
        (&["--only", "no such set"][..], "--only"),
        (&["--max-bytes", "1K"], "--max-bytes"),
        (&["--device", "no such GPU"], "no such GPU"),
        (&["--plot", "/no/such/folder/plot.svg", "--max-bytes", "4K"], "/no/such/folder"),
        (&["--plot", ".", "--max-bytes", "4K"], "must end in .svg"),
        (&["--save", ".", "--max-bytes", "4K"], "cannot write ."),
        (&["--save", "x.svg", "--plot", "./x.svg", "--max-bytes", "4K"], "already reads or writes this file"),
        (&["--only", "cpu/*/norm", "--plot", "x.svg", "--max-bytes", "4K"], "nothing to plot"),
        (&["--only", "resnet50", "--plot", "x.svg", "--max-bytes", "1M"], "nothing to plot"),
        (
            &["--only", "cpu/*/norm", "--only", "cpu/resnet50", "--max-bytes", "1K", "--plot", "x.svg"],
            "exclude every row",
        ),
        (&["--device", "cpu", "--only", "gpu/", "--max-bytes", "4K"], "the GPU path is not measured"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output =
            command(&[&["bench", "--json"], args].concat()).current_dir(folder.path()).output().unwrap();
        let message = assert_fails(&output, &format!("{args:?}"));
        assert!(message.contains(named), "{args:?}: {message}");
    }
}

#[test]
fn invalid_seconds_are_a_usage_error() {
    for seconds in ["inf", "NaN", "-1", "1e300"] {
        let output = command(&["bench", &format!("--seconds={seconds}")]).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b""[..]), "{message}");
        assert!(message.contains(seconds) && message.contains("--seconds"), "{message}");
    }
}

/// The disk is full when the plot is written, after all measurements.
#[test]
#[cfg(unix)]
fn measured_rows_are_printed_even_if_writing_fails() {
    let limited = r#"trap "" XFSZ; ulimit -f 0; exec "$@""#;
    let folder = tempfile::tempdir().unwrap();
    let args =
        ["bench", "--seconds=0", "--device=cpu", "--max-bytes=4K", "--only=2^10/f32", "--plot", "plot.svg"];
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", limited, "sh", env!("CARGO_BIN_EXE_gradclip")]).args(args).current_dir(folder.path());
    let output = shell.output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && message.contains("plot.svg: "), "{message}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("clip exceeded"), "{table}");

    // The limit admits the machine line but not the rows.
    let args = [
        "bench",
        "--seconds=0",
        "--device=cpu",
        "--max-bytes=16K",
        "--only=cpu/2^1*/f32",
        "--json",
        "--save",
        "rows",
    ];
    let mut shell = std::process::Command::new("sh");
    let limited = limited.replace("-f 0", "-f 4");
    shell.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_gradclip")]).args(args).current_dir(folder.path());
    let output = shell.output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && message.contains("cannot write rows"), "{message}");
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.contains("2^10") && lines.contains("2^12"), "{lines}");
}
