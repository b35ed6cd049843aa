//! `gradclip clip` on one F32 file: the clipped values, and the rest of the file.

use std::fs;

use serde_json::{Value, json};

use crate::{
    HALF_ULP, SHIPPED, assert_near, bytes, clip_json, elements, files, folder_with, norm, one_tensor, raw,
};

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
    // Unsorted and unaligned, with an empty tensor and a scalar.
    let header = r#"{"z":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}, "__metadata__":{"step":"7","by":"ä\n"},
        "empty":{"dtype":"F32","shape":[0,3],"data_offsets":[8,8]},"a":{"dtype":"F32","shape":[],"data_offsets":[8,12]} }"#;
    assert_ne!((8 + header.len()) % 4, 0, "the data should be unaligned");
    let (folder, file) = folder_with(&raw(header, &bytes(&[3.0, 0.0, 4.0])));
    let out = folder.path().join("out.safetensors");
    let report = clip_json(&file, &["--value", "2", "-o", out.to_str().unwrap()]);

    assert_eq!(fs::read(&out).unwrap(), raw(header, &bytes(&[2.0, 0.0, 2.0])));
    let tensors = json!([
        {
            "name": "z", "dtype": "F32", "shape": [2, 1], "norm": 3.0,
            "max_magnitude": 3.0, "non_finite": 0, "zeros": 1
        },
        {
            "name": "empty", "dtype": "F32", "shape": [0, 3], "norm": 0.0,
            "max_magnitude": 0.0, "non_finite": 0, "zeros": 0
        },
        {
            "name": "a", "dtype": "F32", "shape": [], "norm": 4.0,
            "max_magnitude": 4.0, "non_finite": 0, "zeros": 0
        },
    ]);
    assert_eq!(report["tensors"], tensors);
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
fn gradients_within_the_limit_are_unchanged() {
    let input = one_tensor(&[3.0, -0.0, 4.0]);
    let (folder, file) = folder_with(&input);
    let out = folder.path().join("out.safetensors");
    let report = clip_json(&file, &["--max-norm", "5.1", "-o", out.to_str().unwrap()]);
    assert_eq!((&report["clip_coef"], &report["total_norm"]), (&json!(1.0), &json!(5.0)));
    assert_eq!(fs::read(&out).unwrap(), input);
}

#[test]
fn the_output_may_be_the_input() {
    let (folder, file) = folder_with(&one_tensor(&[3.0, 4.0]));
    clip_json(&file, &["--value", "3.5", "-o", file.to_str().unwrap()]);
    assert_eq!(fs::read(&file).unwrap(), one_tensor(&[3.0, 3.5]));
    assert_eq!(files(&folder), [file]);
}
