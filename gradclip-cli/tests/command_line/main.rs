//! Tests of the `gradclip` command: its output, the files it writes and its errors.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod arguments;
mod bench;
mod clip;
mod clip_options;
mod devices;
mod exclude;
mod half_precision;
mod headers;
mod output;
mod plot;
mod report;
mod robustness;
mod shards;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/exploding_rnn.safetensors");
/// Half a unit in the last place of an f32, relative: the maximum error of one rounding.
const HALF_ULP: f64 = f32::EPSILON as f64 / 2.0;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradclip"));
    command.args(args);
    command
}

fn clip(file: &Path, args: &[&str]) -> Output {
    command(&["clip", "--device", "cpu"]).arg(file).args(args).output().unwrap()
}

/// Runs `clip --json` successfully and returns the report.
fn clip_json(file: &Path, args: &[&str]) -> Value {
    let output = clip(file, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs `clip` within `kib` KiB of address space. It uses only two threads, because each thread takes address space.
#[cfg(target_os = "linux")]
fn clip_within(kib: usize, file: &Path, args: &[&str]) -> Output {
    let limited = format!(r#"ulimit -v {kib}; exec "$@""#);
    let gradclip = [env!("CARGO_BIN_EXE_gradclip"), "clip", "--max-norm=1", "--device=cpu"];
    let mut command = Command::new("sh");
    command.args(["-c", &limited, "sh"]).args(gradclip).arg(file).args(args);
    command.env("RAYON_NUM_THREADS", "2").output().unwrap()
}

/// Asserts a failure: exit code 1, a one-line message and no output. Returns the message.
fn assert_fails(output: &Output, context: &str) -> String {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{context}: {message}");
    assert_eq!(output.stdout, b"", "{context}");
    assert_eq!(message.lines().count(), 1, "{context}: {message}");
    message
}

/// Creates a folder with one file that holds `bytes`.
fn folder_with(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gradients.safetensors");
    fs::write(&file, bytes).unwrap();
    (folder, file)
}

fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn one_tensor(values: &[f32]) -> Vec<u8> {
    with_tensors(&[("w", values)])
}

/// Returns a file of F32 tensors, in the given order.
fn with_tensors(tensors: &[(&str, &[f32])]) -> Vec<u8> {
    let tensors: Vec<_> = tensors.iter().map(|(name, values)| (*name, "F32", 4, bytes(values))).collect();
    with_types(&tensors)
}

/// Returns a file of tensors, given by name, dtype, element size in bytes and data.
fn with_types(tensors: &[(&str, &str, usize, Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, dtype, size, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let tensor = json!({ "dtype": dtype, "shape": [bytes.len() / size], "data_offsets": offsets });
        header.insert((*name).to_owned(), tensor);
        data.extend_from_slice(bytes);
    }
    raw(&Value::from(header).to_string(), &data)
}

/// Clips a file with `-o` and returns the report and the output's bytes.
fn clip_bytes(input: &[u8], args: &[&str]) -> (Value, Vec<u8>) {
    let (folder, file) = folder_with(input);
    let out = folder.path().join("out.safetensors");
    let report = clip_json(&file, &[args, &["-o", out.to_str().unwrap()]].concat());
    (report, fs::read(out).unwrap())
}

/// Clips F32 tensors and returns the report and the clipped elements.
fn clip_tensors(tensors: &[(&str, &[f32])], args: &[&str]) -> (Value, Vec<f32>) {
    let (report, out) = clip_bytes(&with_tensors(tensors), args);
    let (header, _) = SafeTensors::read_metadata(&out).unwrap();
    (report, floats(&out[8 + header..]))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// Returns all elements of a file, in the order of the data.
fn elements(file: &Path) -> Vec<f32> {
    let bytes = fs::read(file).unwrap();
    let (header, _) = SafeTensors::read_metadata(&bytes).unwrap();
    floats(&bytes[8 + header..])
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

fn assert_near(value: &Value, expected: f64, half_ulps: f64) {
    let value = value.as_f64().unwrap();
    let error = (value - expected).abs() / expected;
    assert!(error <= half_ulps * HALF_ULP, "{value} is not {expected}, but off by {error:e}");
}

fn files(folder: &TempDir) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}
