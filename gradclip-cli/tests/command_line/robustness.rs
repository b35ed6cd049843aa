//! Hostile names, shapes and arguments, closed or full streams, and machines without threads.

use std::fs;
use std::process::{Output, Stdio};

use serde_json::{Map, Value, json};

use crate::{assert_fails, bytes, clip, clip_json, command, folder_with, one_tensor, raw, with_tensors};

/// A stack size beyond a 47-bit address space: creating a thread always fails, as at the limit of `ulimit -u`.
const NO_THREADS: (&str, &str) = ("RUST_MIN_STACK", "1000000000000000");
/// The maximum line width of a table.
const WIDE: usize = 400;

fn out(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    str::from_utf8(&output.stdout).unwrap()
}

fn assert_no_controls(text: &str) {
    let hidden = |c: char| c.is_control() && c != '\n' || "\u{202e}\u{2066}\u{200b}".contains(c);
    assert!(!text.contains(hidden), "{text:?}");
}

#[test]
fn tables_shorten_long_names_shapes_and_patterns_and_json_keeps_them() {
    let long = format!("first{}last", "x".repeat(70_000));
    let shape = vec![1; 40_000];
    let header = json!({
        long.as_str(): { "dtype": "F32", "shape": shape, "data_offsets": [0, 4] },
        "w": { "dtype": "F32", "shape": [1], "data_offsets": [4, 8] },
    });
    let (folder, file) = folder_with(&raw(&header.to_string(), &bytes(&[3.0, 4.0])));
    let to = folder.path().join("out.safetensors");
    let group = format!("first{}=2", "*".repeat(70_000));
    let args = ["--max-norm", "1", "--groups", &group, "-o", to.to_str().unwrap()];
    let output = clip(&file, &args);
    let table = out(&output);
    assert!(table.contains("firstx") && table.contains("…") && table.contains("xlast"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() < WIDE), "{table}");
    assert!(to.exists());

    let report = clip_json(&file, &args[..4]);
    assert_eq!(
        (&report["tensors"][0]["name"], &report["tensors"][0]["shape"]),
        (&json!(long), &json!(shape))
    );
    assert_eq!(report["groups"][0]["pattern"].as_str().unwrap().len() + 2, group.len());
}

/// A quadratic match of pattern and names would take minutes here.
#[test]
fn a_long_pattern_matches_many_names_quickly() {
    let names = (0..50_000).map(|index| format!("layer.{index}")).chain(["x".repeat(60_000)]);
    let empty = json!({ "dtype": "F32", "shape": [0], "data_offsets": [0, 0] });
    let header: Map<String, Value> = names.map(|name| (name, empty.clone())).collect();
    let (_folder, file) = folder_with(&raw(&Value::from(header).to_string(), &[]));
    let group = format!("{}=1", "x".repeat(60_000));
    let report = clip_json(&file, &["--max-norm", "1", "--groups", &group, "--exclude", "layer.*"]);
    assert_eq!(report["tensors"].as_array().unwrap().len(), 1);
}

/// Padding every row to a name of 60,000 characters would take 3 GB here.
#[test]
fn one_long_name_does_not_widen_every_row() {
    let empty = json!({ "dtype": "F32", "shape": [0], "data_offsets": [0, 0] });
    let names = (0..2000).map(|index| format!("layer.{index}")).chain(["x".repeat(60_000)]);
    let header: Map<String, Value> = names.map(|name| (name, empty.clone())).collect();
    let (_folder, file) = folder_with(&raw(&Value::from(header).to_string(), &[]));
    let output = clip(&file, &["--max-norm", "1"]);
    let table = out(&output);
    assert!(table.lines().count() > 2001 && table.len() < 2000 * 200, "{} bytes", table.len());
}

const CONTROLS: &str =
    "a\u{1b}[31mred\u{1b}]0;title\u{7}\0\r\u{8}\u{9b}2J\u{202e}gnp\u{2066}\u{200b}.\"q\"\\";

#[test]
fn no_control_character_of_a_name_reaches_the_terminal() {
    let (folder, file) = folder_with(&with_tensors(&[(CONTROLS, &[3.0, f32::NAN]), ("w", &[4.0])]));
    let plot = folder.path().join("plot.svg");
    // An argument cannot contain NUL.
    let group = format!("{}*=1", CONTROLS.replace('\0', "?"));
    let args = ["--max-norm", "1", "--groups", &group, "--plot", plot.to_str().unwrap()];
    let output = clip(&file, &args);
    assert_no_controls(out(&output));
    assert!(out(&output).contains(r"a\u{1b}[31mred\u{1b}]0;title\u{7}\0\r\u{8}\u{9b}2J\u{202e}gnp"));
    assert_no_controls(&fs::read_to_string(&plot).unwrap());
    let output = clip(&file, &["--max-norm", "1", "--json"]);
    assert_no_controls(out(&output));
    assert_eq!(serde_json::from_str::<Value>(out(&output)).unwrap()["tensors"][0]["name"], CONTROLS);

    let message = assert_fails(&clip(&file, &["--max-norm", "1", "--nonfinite", "error"]), "named");
    assert_no_controls(&message);
    assert!(message.contains(r#""a\u{1b}[31mred"#), "{message}");
}

#[test]
fn no_control_character_of_an_argument_reaches_the_terminal() {
    let (folder, file) = folder_with(&one_tensor(&[1.0]));
    let path = CONTROLS.replace('\0', "");
    let missing = folder.path().join(&path);
    for (file, args) in [
        (&missing, &["--max-norm", "1"][..]),
        (&file, &["--max-norm", "1", "-o", &format!("{}/{path}/x", folder.path().display())]),
        (&file, &["--max-norm", "1", "--plot", &format!("{}/{path}/x", folder.path().display())]),
        (&file, &["--max-norm", &path]),
        (&file, &["--max-norm", "1", &format!("--{path}")]),
        (&file, &["--max-norm", "1", "--groups", &path]),
        (&file, &["--max-norm", "1", "--groups", &format!("{path}=-1")]),
        (&file, &["--max-norm", "1", "--norm-type", &path]),
        (&file, &["--max-norm", "1", "--nonfinite", &path]),
    ] {
        let output = clip(file, args);
        assert!(!output.status.success());
        let message = str::from_utf8(&output.stderr).unwrap();
        assert_no_controls(message);
        assert!(message.contains(r"\u{1b}[31mred"), "{args:?}: {message}");
    }
    for args in [
        &["bench", "--max-bytes", &path][..],
        &["bench", "--device", &path],
        &["clip", file.to_str().unwrap(), "--max-norm", "1", "--device", &path],
    ] {
        let message = command(args).output().unwrap().stderr;
        assert_no_controls(str::from_utf8(&message).unwrap());
    }
    let saved = folder.path().join("rows.jsonl");
    let machine =
        json!({ "kind": "machine", "library": "gradclip", "version": "1", "gpu": CONTROLS, "threads": 4 });
    fs::write(&saved, format!("{machine}\n")).unwrap();
    assert_no_controls(out(&command(&["bench", "--check"]).arg(saved).output().unwrap()));
}

#[test]
fn without_threads_the_calling_thread_clips_to_the_same_bits() {
    let values: Vec<f32> =
        (0..600_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 - 8e6).collect();
    let (folder, file) = folder_with(&with_tensors(&[("a", &values), ("b", &values[..9])]));
    let clip = |name: &str, threads: &[(&str, &str)]| {
        let to = folder.path().join(name);
        let mut command = command(&["clip", "--device", "cpu", "--max-norm", "1", "--json", "-o"]);
        let output = command.arg(&to).arg(&file).envs(threads.iter().copied()).output().unwrap();
        assert_eq!(output.stderr, b"", "{output:?}");
        let mut report: Value = serde_json::from_str(out(&output)).unwrap();
        report["seconds"].take();
        let device = report["device"].take();
        (report, fs::read(&to).unwrap(), device)
    };
    let (report, elements, _) = clip("threads", &[]);
    let (alone, elements_alone, device) = clip("alone", &[NO_THREADS]);
    assert_eq!((alone, device), (report, json!("CPU path (1 thread)")));
    assert!(elements == elements_alone);
}

#[test]
fn a_bench_without_threads_is_an_error() {
    let args = ["bench", "--seconds", "0", "--device", "cpu", "--only", "2^10/f32"];
    let output = command(&args).envs([NO_THREADS]).output().unwrap();
    assert!(assert_fails(&output, "threads").contains("cannot start the threads"));
}

#[test]
fn an_invalid_log_filter_is_a_warning() {
    let (_folder, file) = folder_with(&one_tensor(&[1.0]));
    let run = |filter: &str, stderr: Stdio| {
        let mut command = command(&["clip", "--device", "cpu", "--max-norm", "1"]);
        command.arg(&file).env("RUST_LOG", filter).stderr(stderr).stdout(Stdio::piped()).spawn().unwrap()
    };
    let output = run("gradclip=loud\u{1b}[31m", Stdio::piped()).wait_with_output().unwrap();
    let warning = str::from_utf8(&output.stderr).unwrap();
    assert!(output.status.success() && warning.contains("RUST_LOG"), "{output:?}");
    assert_eq!(warning.lines().count(), 1, "{warning}");
    assert_no_controls(warning);
    for filter in ["gradclip=loud", "a=b=c", "trace", "/("] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = run(filter, writer.into()).wait_with_output().unwrap();
        assert!(output.status.success(), "{filter}, closed: {output:?}");
        #[cfg(target_os = "linux")]
        {
            let full = fs::File::options().write(true).open("/dev/full").unwrap();
            let output = run(filter, full.into()).wait_with_output().unwrap();
            assert!(output.status.success(), "{filter}, full: {output:?}");
        }
    }
}

/// Every kind of output to a full device fails with an error and its exit code, never with a panic.
#[test]
#[cfg(target_os = "linux")]
fn a_full_stdout_is_an_error() {
    let (folder, file) = folder_with(&one_tensor(&[3.0, 4.0]));
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let file = file.to_str().unwrap();
    let plot = folder.path().join("plot.svg");
    let clip = ["clip", file, "--device", "cpu", "--max-norm", "1"];
    for args in [
        &clip[..],
        &[&clip[..], &["--json"]].concat(),
        &[&clip[..], &["--plot", plot.to_str().unwrap()]].concat(),
        &["devices"],
        &["devices", "--json"],
        &["--help"],
        &["clip", "--help"],
        &["--version"],
    ] {
        let output = command(args).stdout(full()).output().unwrap();
        let message = assert_fails(&output, &format!("{args:?}"));
        assert!(message.contains("cannot print to stdout"), "{message}");
    }
    assert!(plot.exists(), "the plot is written although the report failed");

    // A full stderr as well.
    let mut nowhere: std::process::Command = command(&clip);
    assert_eq!(nowhere.stdout(full()).stderr(full()).status().unwrap().code(), Some(1));
    assert_eq!(command(&["clip"]).stderr(full()).status().unwrap().code(), Some(2));
}
