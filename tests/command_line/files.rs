//! What is read and written, and what is refused.

use std::fs;
#[cfg(unix)]
use std::process::Command;

use serde_json::{Value, json};

use crate::{
    HALF_ULP, SHIPPED, assert_fails, assert_near, bytes, clip, clip_json, elements, files, folder_with, norm,
    one_tensor, raw,
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
    // Neither sorted, nor aligned, and with all shapes that hold one element or none.
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
fn gradients_within_the_limit_stay_as_they_are() {
    let input = one_tensor(&[3.0, -0.0, 4.0]);
    let (folder, file) = folder_with(&input);
    let out = folder.path().join("out.safetensors");
    let report = clip_json(&file, &["--max-norm", "5.1", "-o", out.to_str().unwrap()]);
    assert_eq!((&report["clip_coef"], &report["total_norm"]), (&json!(1.0), &json!(5.0)));
    assert_eq!(fs::read(&out).unwrap(), input);
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
        ("half an element", raw(&single(tensor("F16", 3, 0, 7)), &[0; 7]), "shape"),
        (
            "dtype I64",
            raw(&single(tensor("I64", 1, 0, 8)), &[0; 8]),
            r#""w" is of dtype "I64", but only F32, F16 and BF16"#,
        ),
        (
            "dtype unheard of",
            raw(&single(tensor("Q8", 8, 0, 8)), &[0; 8]),
            r#""w" is of dtype "Q8", but only F32, F16 and BF16"#,
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
