//! The report of `gradclip clip`, as tables and as JSON.

use std::fs;
use std::process::Stdio;

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::{
    SHIPPED, assert_near, clip, clip_json, command, elements, files, floats, folder_with, norm, one_tensor,
};

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
fn json_has_exactly_these_keys() {
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let report = clip_json(SHIPPED.as_ref(), &["--max-norm", "1"]);
    let top = ["clip_coef", "device", "non_finite", "seconds", "tensors", "total_norm", "total_norm_after"];
    assert_eq!(keys(&report), top);
    assert_eq!(keys(&report["seconds"]), ["clip", "download", "measure", "open", "read", "upload", "write"]);
    let tensor = ["dtype", "max_magnitude", "name", "non_finite", "norm", "shape", "zeros"];
    assert_eq!(keys(&report["tensors"][0]), tensor);
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
fn the_table_shows_names_norms_and_the_device() {
    let (folder, file) = folder_with(&one_tensor(&[3.0, 4.0]));
    let output = clip(&file, &["--max-norm", "1"]);
    let table = String::from_utf8(output.stdout).unwrap();
    let words: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    for line in [
        &["tensor", "dtype", "shape", "norm"][..],
        &["w", "F32", "[2]", "5"],
        &["total", "norm", "5"],
        &["limit", "1"],
    ] {
        assert!(words.iter().any(|words| words == line), "no {line:?} in {table}");
    }
    assert!(table.contains("CPU path"), "{table}");
    assert_eq!(files(&folder), [file], "nothing was to be written");
}

#[test]
fn a_closed_stdout_is_not_an_error() {
    for args in [
        &["devices"][..],
        &["devices", "--json"],
        &["clip", SHIPPED, "--max-norm", "1", "--device", "cpu"],
        &["clip", SHIPPED, "--max-norm", "1", "--device", "cpu", "--json"],
        &["clip", "--help"],
        &["bench", "--seconds", "0", "--device", "cpu", "--only", "2^10/f32", "--json"],
    ] {
        let mut child = command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
