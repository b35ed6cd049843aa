//! Rejected arguments.

use std::path::Path;

use crate::{assert_fails, clip, files, folder_with, one_tensor};

#[test]
fn invalid_arguments_are_rejected() {
    let (folder, file) = folder_with(&one_tensor(&[1.0]));
    let missing = folder.path().join("missing.safetensors");
    // The missing input file shows that the other arguments are checked first.
    let cases: [(&Path, &[&str], &str); 4] = [
        (&missing, &["--max-norm", "1", "-o", "missing/out"], "cannot write missing/out"),
        (&file, &["--max-norm", "1", "-o", folder.path().to_str().unwrap()], "not a regular file"),
        (&missing, &["--max-norm", "1"], "cannot read"),
        (folder.path(), &["--max-norm", "1"], "not a regular file"),
    ];
    for (file, args, expected) in cases {
        let message = assert_fails(&clip(file, &[args, &["--json"]].concat()), expected);
        assert!(message.contains(expected), "{message}");
    }
    // The message names the option, the given value and the allowed values.
    let not_negative = "it must be a number, 0 or greater";
    let invalid_values: [(&[&str], &[&str]); 11] = [
        (&["--max-norm", "-1"], &["'-1'", "--max-norm", not_negative]),
        (&["--max-norm", "NaN"], &["'NaN'", "--max-norm", not_negative]),
        (&["--max-norm", "one"], &["'one'", "--max-norm", not_negative]),
        (&["--value", "-1"], &["'-1'", "--value", not_negative]),
        (&["--value", "-inf"], &["'-inf'", "--value", not_negative]),
        (&["--max-norm", "1", "--norm-type", "NaN"], &["'NaN'", "--norm-type", "it must be a number"]),
        (&["--max-norm", "1", "--loss-scale", "-2"], &["'-2'", "--loss-scale", "positive and finite"]),
        (&["--max-norm", "1", "--loss-scale", "0"], &["'0'", "--loss-scale", "positive and finite"]),
        (&["--max-norm", "1", "--loss-scale", "2.9e-39"], &["'2.9e-39'", "--loss-scale"]),
        (
            &["--max-norm", "1", "--groups", "v=1", "--groups", "w.*=-3"],
            &["--groups", r#""w.*" is "-3""#, not_negative],
        ),
        (&["--max-norm", "1", "--groups", "w=one"], &["--groups", r#""w" is "one""#, not_negative]),
    ];
    for (args, expected) in invalid_values {
        let output = clip(&missing, args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b""[..]), "{args:?}: {message}");
        assert!(expected.iter().all(|part| message.contains(part)), "{args:?}: {message}");
        assert!(!message.contains("0000000") && !message.contains("clip_value"), "{message}");
    }
    let by_norm_only: [&[&str]; 4] =
        [&["--norm-type", "2"], &["--per-tensor"], &["--nonfinite", "skip"], &["--groups", "w=1"]];
    let by_value = by_norm_only.map(|option| [&["--value", "1"], option].concat());
    let usages: [&[&str]; 7] = [
        &[],
        &["--max-norm", "1", "--value", "1"],
        &["--max-norm"],
        &["--max-norm", "1", "--norm-type", "two"],
        &["--max-norm", "1", "--nonfinite", "ignore"],
        &["--max-norm", "1", "--groups", "w"],
        &["--groups", "w=1"],
    ];
    for usage in usages.into_iter().chain(by_value.iter().map(|usage| &usage[..])) {
        let output = clip(&file, usage);
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b""[..]), "{usage:?}");
    }
    assert_eq!(files(&folder), [file]);
}
