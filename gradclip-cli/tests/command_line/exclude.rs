//! `--exclude`.

use serde_json::json;

use crate::{
    assert_fails, assert_near, bytes, clip, clip_bytes, clip_tensors, files, folder_with, with_tensors,
    with_types,
};

const TENSORS: [(&str, &[f32]); 4] = [
    ("body.w", &[3.0, 4.0]),
    ("body.b", &[f32::INFINITY, -0.0, f32::NAN]),
    ("head.w", &[12.0]),
    ("head.b", &[5.0]),
];

#[test]
fn excluded_tensors_are_neither_measured_nor_written() {
    for more in [&[][..], &["--per-tensor"], &["--nonfinite", "error"], &["--loss-scale", "2"]] {
        let args = [&["--max-norm", "1.3", "--exclude", "body.b", "--exclude", "*.w"], more].concat();
        let (report, after) = clip_tensors(&TENSORS, &args);
        let factor = if more.contains(&"--loss-scale") { 2.0 } else { 1.0 };
        assert_near(&report["total_norm"], 5.0 / factor, 1.01);
        assert_eq!(report["non_finite"], false, "{more:?}");
        assert_eq!(report["excluded"], json!(["body.w", "body.b", "head.w"]));
        assert_eq!(report["tensors"].as_array().unwrap().len(), 1);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let before: Vec<f32> = TENSORS[..3].iter().flat_map(|(_, values)| *values).copied().collect();
        assert_eq!(bits(&after[..6]), bits(&before), "{more:?}");
        assert!((after[6] - 1.3).abs() < 1e-5, "{more:?}: {after:?}");
    }
    let (report, after) = clip_tensors(&TENSORS, &["--value", "1", "--exclude", "body.*"]);
    assert_eq!((after[..2].to_vec(), after[6..].to_vec()), (vec![3.0, 4.0], vec![1.0]));
    assert_eq!(after[5], 1.0);
    assert_near(&report["total_norm"], 13.0, 1.01);
}

#[test]
fn excluded_tensors_may_be_of_any_dtype() {
    let odd = b"\xff\x7f\x01\0\0\0\0\x80\x2a".to_vec();
    let tensors = [
        ("mask", "BOOL", 1, vec![1, 0, 1]),
        ("w", "F32", 4, bytes(&[3.0, 4.0])),
        ("future", "Q3_K", 1, odd),
        ("step", "I64", 8, 7_i64.to_le_bytes().to_vec()),
    ];
    let exclude = ["--exclude", "mask", "--exclude", "step", "--exclude", "fut*"];
    let input = with_types(&tensors);
    let (report, out) = clip_bytes(&input, &[&["--value", "2"], &exclude[..]].concat());
    let mut expected = tensors;
    expected[1].3 = bytes(&[2.0, 2.0]);
    assert_eq!(out, with_types(&expected));
    assert_eq!(report["tensors"].as_array().unwrap().len(), 1);

    let (_folder, file) = folder_with(&input);
    let table = clip(&file, &[&["--max-norm", "1"], &exclude[..]].concat());
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.lines().any(|line| line.split_whitespace().eq(["excluded", "3", "tensors"])), "{table}");
}

#[test]
fn patterns_without_an_effect_are_rejected() {
    let (folder, file) = folder_with(&with_tensors(&TENSORS));
    let out = folder.path().join("out.safetensors");
    let cases: [(&[&str], &[&str]); 7] = [
        (&["--groups", "discriminator.*=1"], &["--groups \"discriminator.*\"", "no tensor"]),
        (&["--groups", "body.*=1", "--groups", "Head.*=1"], &["--groups \"Head.*\"", "no tensor"]),
        (&["--groups", "*.b=1", "--groups", "head.b=1"], &["--groups \"head.b\"", "in an earlier group"]),
        (&["--groups", "head.*=1", "--exclude", "head.*"], &["--groups \"head.*\"", "excluded"]),
        (&["--exclude", "body.*", "--exclude", "bias"], &["--exclude \"bias\"", "no tensor"]),
        (&["--exclude", "*"], &["--exclude matches every tensor"]),
        (&["--exclude", "\u{1b}[2J"], &[r"\u{1b}[2J"]),
    ];
    for (args, words) in cases {
        let args = [&["--max-norm", "1", "--json", "-o", out.to_str().unwrap()], args].concat();
        let message = assert_fails(&clip(&file, &args), &format!("{args:?}"));
        assert!(words.iter().all(|word| message.contains(word)), "{args:?}: {message}");
        assert_eq!(files(&folder), std::slice::from_ref(&file));
    }
}
