//! The `gradclip` command as its users meet it: what it prints, what it writes, and how it fails.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/exploding_rnn.safetensors");
/// Half a unit in the last place of an f32: what rounding a number once may change it by.
const HALF_ULP: f64 = f32::EPSILON as f64 / 2.0;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradclip"));
    command.args(args);
    command
}

fn clip(file: &Path, args: &[&str]) -> Output {
    command(&["clip", "--device", "cpu"]).arg(file).args(args).output().unwrap()
}

/// The one JSON object that a successful `clip --json` prints.
fn clip_json(file: &Path, args: &[&str]) -> Value {
    let output = clip(file, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// One line of explanation, exit code 1, and nothing that a script could take for a result.
fn assert_fails(output: &Output, context: &str) -> String {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{context}: {message}");
    assert_eq!(output.stdout, b"", "{context}");
    assert_eq!(message.lines().count(), 1, "{context}: {message}");
    message
}

/// A folder with one file of these bytes.
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
    let header =
        json!({ "w": { "dtype": "F32", "shape": [values.len()], "data_offsets": [0, 4 * values.len()] } });
    raw(&header.to_string(), &bytes(values))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// All elements of a file, in the order of the data.
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

#[test]
fn norms_of_the_shipped_file() {
    let report = clip_json(SHIPPED.as_ref(), &["--max-norm", "2.5"]);
    let all = norm(&elements(SHIPPED.as_ref()));
    assert_near(&report["total_norm"], all, 1.01);
    assert_near(&report["clip_coef"], 2.5 / (all + 1e-6), 4.0);
    assert_near(&report["total_norm_after"], 2.5, 6.0);
    assert_eq!(report["non_finite"], false);

    let bytes = fs::read(SHIPPED).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), file.len());
    for tensor in tensors {
        let view = file.tensor(tensor["name"].as_str().unwrap()).unwrap();
        assert_near(&tensor["norm"], norm(&floats(view.data())), 1.01);
        assert_eq!(tensor["shape"], json!(view.shape()));
    }
}

#[test]
fn the_output_is_the_input_times_the_coefficient() {
    let (folder, file) = folder_with(&fs::read(SHIPPED).unwrap());
    let out = folder.path().join("out.safetensors");
    let report = clip_json(&file, &["--max-norm", "1", "-o", out.to_str().unwrap()]);

    let exact = 1.0 / (norm(&elements(&file)) + 1e-6);
    for (before, after) in elements(&file).into_iter().zip(elements(&out)) {
        let expected = f64::from(before) * exact;
        assert!(
            (f64::from(after) - expected).abs() <= 5.0 * HALF_ULP * expected.abs(),
            "{before} became {after}"
        );
    }
    assert_eq!(clip_json(&out, &["--max-norm", "1"])["total_norm"], report["total_norm_after"]);
    assert_eq!(fs::read(&file).unwrap(), fs::read(SHIPPED).unwrap(), "the input was changed");
}

#[test]
fn names_order_shapes_and_metadata_are_kept() {
    // Neither sorted, nor aligned, and with all shapes that hold one element or none.
    let header = r#"{"z":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}, "__metadata__":{"step":"7","by":"ä\n"},
        "empty":{"dtype":"F32","shape":[0,3],"data_offsets":[8,8]},"a":{"dtype":"F32","shape":[],"data_offsets":[8,12]} }"#;
    assert_ne!((8 + header.len()) % 4, 0, "the data should be unaligned");
    let (folder, file) = folder_with(&raw(header, &bytes(&[3.0, 0.0, 4.0])));
    let out = folder.path().join("out.safetensors");
    let report = clip_json(&file, &["--value", "2", "-o", out.to_str().unwrap()]);

    assert_eq!(fs::read(&out).unwrap(), raw(header, &bytes(&[2.0, 0.0, 2.0])));
    let tensors = json!([
        { "name": "z", "dtype": "F32", "shape": [2, 1], "norm": 3.0 },
        { "name": "empty", "dtype": "F32", "shape": [0, 3], "norm": 0.0 },
        { "name": "a", "dtype": "F32", "shape": [], "norm": 4.0 },
    ]);
    assert_eq!(report["tensors"], tensors);
}

#[test]
fn json_has_exactly_these_keys() {
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let report = clip_json(SHIPPED.as_ref(), &["--max-norm", "1"]);
    let top = ["clip_coef", "device", "non_finite", "seconds", "tensors", "total_norm", "total_norm_after"];
    assert_eq!(keys(&report), top);
    assert_eq!(keys(&report["seconds"]), ["clip", "download", "measure", "open", "read", "upload", "write"]);
    assert_eq!(keys(&report["tensors"][0]), ["dtype", "name", "norm", "shape"]);
    assert!(report["seconds"]["read"].as_f64().unwrap() > 0.0);
    assert_eq!(report["seconds"]["write"], 0.0, "nothing was to be written");
}

#[test]
fn numbers_that_json_lacks_are_strings() {
    let (_folder, file) = folder_with(&one_tensor(&[1.0, f32::NAN]));
    let report = clip_json(&file, &["--max-norm", "1"]);
    for key in ["total_norm", "total_norm_after", "clip_coef"] {
        assert_eq!(report[key], "NaN", "{key}");
    }
    assert_eq!((&report["non_finite"], &report["tensors"][0]["norm"]), (&json!(true), &json!("NaN")));

    let (_folder, file) = folder_with(&one_tensor(&[1.0, f32::NEG_INFINITY]));
    let report = clip_json(&file, &["--max-norm", "1"]);
    assert_eq!((&report["total_norm"], &report["clip_coef"]), (&json!("Infinity"), &json!(0.0)));
    assert_eq!((&report["non_finite"], &report["total_norm_after"]), (&json!(true), &json!("NaN")));
}

#[test]
fn by_value_clamps_and_still_measures() {
    let before = [3.0, -4.0, 0.25, -0.0, f32::MIN_POSITIVE];
    let (folder, file) = folder_with(&one_tensor(&before));
    let out = folder.path().join("out.safetensors");
    let report = clip_json(&file, &["--value", "0.5", "-o", out.to_str().unwrap()]);

    let after = [0.5, -0.5, 0.25, -0.0, f32::MIN_POSITIVE];
    assert_eq!(fs::read(&out).unwrap(), one_tensor(&after));
    assert_near(&report["total_norm"], norm(&before), 1.01);
    assert_near(&report["total_norm_after"], norm(&after), 1.01);
    assert_eq!((&report["clip_coef"], &report["non_finite"]), (&Value::Null, &json!(false)));
}

#[test]
fn gradients_within_the_limit_stay_as_they_are() {
    let input = one_tensor(&[3.0, -0.0, 4.0]);
    let (folder, file) = folder_with(&input);
    let out = folder.path().join("out.safetensors");
    let report = clip_json(&file, &["--max-norm", "5.1", "-o", out.to_str().unwrap()]);
    assert_eq!((&report["clip_coef"], &report["total_norm"]), (&json!(1.0), &json!(5.0)));
    assert_eq!(fs::read(&out).unwrap(), input);
}

#[test]
fn the_table_shows_names_norms_and_the_device() {
    let (folder, file) = folder_with(&one_tensor(&[3.0, 4.0]));
    let output = clip(&file, &["--max-norm", "1"]);
    let table = String::from_utf8(output.stdout).unwrap();
    let words: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    for line in [&["tensor", "shape", "norm"][..], &["w", "[2]", "5"], &["total", "norm", "5"]] {
        assert!(words.iter().any(|words| words == line), "no {line:?} in {table}");
    }
    assert!(table.contains("CPU path"), "{table}");
    assert_eq!(files(&folder), [file], "nothing was to be written");
}

#[test]
fn damaged_files_are_refused() {
    let tensor = |dtype, len, start, end| {
        format!(r#"{{"dtype":"{dtype}","shape":[{len}],"data_offsets":[{start},{end}]}}"#)
    };
    let single = |tensor| format!(r#"{{"w":{tensor}}}"#);
    let fine = single(tensor("F32", 2, 0, 8));
    let overlapping = format!(r#"{{"v":{},"w":{}}}"#, tensor("F32", 2, 0, 8), tensor("F32", 2, 4, 12));
    let sound = raw(&fine, &[0; 8]);
    let cases = [
        ("empty", vec![], "0 bytes"),
        ("shorter than its length", vec![1, 2, 3, 4], "4 bytes"),
        ("huge header", [&u64::MAX.to_le_bytes(), &sound[8..]].concat(), "header"),
        ("header past the end", [&100_u64.to_le_bytes(), &sound[8..]].concat(), "header"),
        ("header not JSON", raw("gradients!", &[]), "JSON"),
        ("header not an object", raw("[1, 2]", &[]), "header"),
        ("header not UTF-8", [&1_u64.to_le_bytes()[..], &[0xff]].concat(), "JSON"),
        ("data truncated", raw(&fine, &[0; 7]), "8 bytes"),
        ("data left over", raw(&fine, &[0; 9]), "8 bytes"),
        ("offsets overlapping", raw(&overlapping, &[0; 12]), "offset"),
        ("offsets backwards", raw(&single(tensor("F32", 2, 8, 0)), &[0; 8]), "offset"),
        ("a gap before", raw(&single(tensor("F32", 2, 4, 12)), &[0; 12]), "offset"),
        ("shape and size differ", raw(&single(tensor("F32", 3, 0, 8)), &[0; 8]), "shape"),
        ("shape overflows", raw(&single(tensor("F32", usize::MAX, 0, 8)), &[0; 8]), "overflow"),
        (
            "dtype F16",
            raw(&single(tensor("F16", 4, 0, 8)), &[0; 8]),
            r#""w" is of dtype "F16", but only F32"#,
        ),
        (
            "dtype I64",
            raw(&single(tensor("I64", 1, 0, 8)), &[0; 8]),
            r#""w" is of dtype "I64", but only F32"#,
        ),
        (
            "dtype unheard of",
            raw(&single(tensor("Q8", 8, 0, 8)), &[0; 8]),
            r#""w" is of dtype "Q8", but only F32"#,
        ),
        ("tensor not an object", raw(&single("7".into()), &[]), "header"),
        ("no tensors", raw("{}", &[]), "no tensors"),
        ("metadata only", raw(r#"{"__metadata__":{"a":"b"}}"#, &[]), "no tensors"),
    ];
    for (name, content, expected) in cases {
        let (folder, file) = folder_with(&content);
        let out = folder.path().join("out.safetensors");
        let output = clip(&file, &["--max-norm", "1", "--json", "-o", out.to_str().unwrap()]);
        let message = assert_fails(&output, name);
        assert!(message.contains(expected) && message.contains("gradients.safetensors"), "{name}: {message}");
        assert_eq!(files(&folder), [file], "{name}");
    }
    let (_folder, file) = folder_with(&sound);
    assert!(clip(&file, &["--max-norm", "1"]).status.success(), "what the others are damaged copies of");
}

#[test]
fn impossible_arguments_are_refused() {
    let (folder, file) = folder_with(&one_tensor(&[1.0]));
    let missing = folder.path().join("missing.safetensors");
    // The missing file shows that nobody waits for the file to hear of the rest.
    let cases: [(&Path, &[&str], &str); 7] = [
        (&missing, &["--max-norm", "-1"], "max_norm is -1"),
        (&file, &["--max-norm", "NaN"], "max_norm is NaN"),
        (&file, &["--value", "-inf"], "clip_value is -inf"),
        (&missing, &["--max-norm", "1", "-o", "missing/out"], "cannot write missing/out"),
        (&file, &["--max-norm", "1", "-o", folder.path().to_str().unwrap()], "not a regular file"),
        (&missing, &["--max-norm", "1"], "cannot read"),
        (folder.path(), &["--max-norm", "1"], "not a regular file"),
    ];
    for (file, args, expected) in cases {
        let message = assert_fails(&clip(file, &[args, &["--json"]].concat()), expected);
        assert!(message.contains(expected), "{message}");
    }
    for usage in [&[][..], &["--max-norm", "1", "--value", "1"], &["--max-norm", "one"], &["--max-norm"]] {
        let output = clip(&file, usage);
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b""[..]), "{usage:?}");
    }
    assert_eq!(files(&folder), [file]);
}

/// What clips changes neither the result nor the report, but for the last bits; and a GPU that is not there is an error.
#[test]
fn every_device_clips_alike() {
    let on = |device: &str| {
        command(&["clip", SHIPPED, "--max-norm", "1", "--json", "--device", device]).output().unwrap()
    };
    let devices: Value =
        serde_json::from_slice(&command(&["devices", "--json"]).output().unwrap().stdout).unwrap();
    let cpu = clip_json(SHIPPED.as_ref(), &["--max-norm", "1"]);
    for adapter in devices["adapters"].as_array().unwrap() {
        let name = adapter["name"].as_str().unwrap();
        let report: Value = serde_json::from_slice(&on(name).stdout).unwrap();
        assert!(report["device"].as_str().unwrap().contains(name), "{report}");
        for key in ["total_norm", "total_norm_after", "clip_coef"] {
            assert_near(&report[key], cpu[key].as_f64().unwrap(), 8.0);
        }
    }
    let refused = on("no such GPU");
    assert_eq!((refused.status.code(), &refused.stdout[..]), (Some(1), &b""[..]));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no such GPU"), "{refused:?}");
}

#[test]
fn the_output_may_be_the_input() {
    let (folder, file) = folder_with(&one_tensor(&[3.0, 4.0]));
    clip_json(&file, &["--value", "3.5", "-o", file.to_str().unwrap()]);
    assert_eq!(fs::read(&file).unwrap(), one_tensor(&[3.0, 3.5]));
    assert_eq!(files(&folder), [file]);
}

#[test]
fn a_read_only_output_stays() {
    let (folder, out) = folder_with(b"old");
    let mut permissions = fs::metadata(&out).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&out, permissions).unwrap();
    let output = clip(SHIPPED.as_ref(), &["--max-norm", "1", "--json", "-o", out.to_str().unwrap()]);
    assert!(assert_fails(&output, "read-only").contains("read-only"));
    assert_eq!((fs::read(&out).unwrap(), files(&folder).len()), (b"old".to_vec(), 1));
}

/// A limit on the size of files stands for the full disk, and catches `root` too, whom no permissions hold.
#[test]
#[cfg(unix)]
fn a_full_disk_leaves_the_old_file() {
    let (folder, out) = folder_with(b"old");
    let limited = r#"trap "" XFSZ; ulimit -f 8; exec "$@""#;
    let gradclip =
        [env!("CARGO_BIN_EXE_gradclip"), "clip", SHIPPED, "--max-norm=1", "--device=cpu", "--json", "-o"];
    let output = Command::new("sh").args(["-c", limited, "sh"]).args(gradclip).arg(&out).output().unwrap();
    assert!(assert_fails(&output, "full disk").contains("cannot write"));
    assert_eq!((fs::read(&out).unwrap(), files(&folder).len()), (b"old".to_vec(), 1));
}

#[test]
#[cfg(unix)]
fn links_and_permissions_are_kept() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    let (folder, file) = folder_with(&one_tensor(&[3.0, 4.0]));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let link = folder.path().join("link");
    symlink(&file, &link).unwrap();
    clip_json(&file, &["--value", "1", "-o", link.to_str().unwrap()]);
    assert!(link.is_symlink(), "the link was replaced by a file");
    assert_eq!(fs::read(&file).unwrap(), one_tensor(&[1.0, 1.0]));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn devices_lists_the_cpu_path_and_the_choice() {
    let table = command(&["devices"]).output().unwrap();
    assert!(table.status.success(), "{table:?}");
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("CPU path") && table.contains("max_storage_buffer_binding_size"), "{table}");
    assert_eq!(
        table.lines().filter(|line| line.starts_with("* ") && !line.contains("auto")).count(),
        1,
        "{table}"
    );

    let json = command(&["devices", "--json"]).output().unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(json["cpu"]["threads"].as_u64().unwrap() > 0);
    let hardware =
        |adapter: &Value| adapter["software"] == false && adapter["limits"]["max_buffer_size"].is_u64();
    match json["auto"].as_u64() {
        Some(index) => assert!(hardware(&json["adapters"][usize::try_from(index).unwrap()])),
        None => assert!(!json["adapters"].as_array().unwrap().iter().any(hardware)),
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    for args in [&["devices"][..], &["clip", SHIPPED, "--max-norm", "1", "--device", "cpu"]] {
        let mut child = command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
