//! The clip options: norm types, scopes, policies, loss scale, groups and a supplied total norm.

use serde_json::{Value, json};

use crate::{assert_fails, assert_near, clip, clip_tensors, files, folder_with, with_tensors};

type Tensors<'a> = [(&'a str, &'a [f32])];

const TENSORS: [(&str, &[f32]); 3] = [("a", &[3.0, -4.0, 0.25]), ("b", &[-2.0, 0.5]), ("c", &[1.5])];

/// Returns the total norm as PyTorch defines it. For p = 0 it is the number of tensors with a non-zero element.
fn norm(p: f64, tensors: &Tensors<'_>) -> f64 {
    let magnitudes = || tensors.iter().flat_map(|(_, values)| *values).map(|&value| f64::from(value).abs());
    if p == f64::INFINITY {
        magnitudes().fold(0.0, f64::max)
    } else if p == f64::NEG_INFINITY {
        magnitudes().fold(f64::INFINITY, f64::min)
    } else if p == 0.0 {
        tensors.iter().filter(|(_, values)| values.iter().any(|&value| value != 0.0)).count() as f64
    } else {
        magnitudes().map(|magnitude| magnitude.powf(p)).sum::<f64>().powf(1.0 / p)
    }
}

fn values(tensors: &Tensors<'_>) -> Vec<f32> {
    tensors.iter().flat_map(|(_, values)| *values).copied().collect()
}

fn assert_scaled(after: &[f32], before: &[f32], factor: f64) {
    assert_eq!(after.len(), before.len());
    for (after, before) in after.iter().zip(before) {
        let expected = f64::from(*before) * factor;
        assert!((f64::from(*after) - expected).abs() <= 2e-5 * expected.abs(), "{before} became {after}");
    }
}

#[test]
fn every_norm_type() {
    let zeros = [("a", &[3.0, 0.0, 2.0][..]), ("z", &[0.0; 5]), ("b", &[-1.0])];
    for p in ["2", "1", "inf", "-inf", "0", "3", "0.5", "-1.5"] {
        let exponent: f64 = p.parse().unwrap();
        // `pow` is not correctly rounded.
        let tolerance = if ["2", "1", "inf", "-inf", "0"].contains(&p) { 1.01 } else { 100.0 };
        for tensors in [&TENSORS[..], &zeros] {
            let all = norm(exponent, tensors);
            // The limit is half of the norm. A norm of 0 is within every limit.
            let limit = if all == 0.0 { 1.0 } else { all / 2.0 };
            let args = ["--max-norm", &limit.to_string(), "--norm-type", p];
            let (report, after) = clip_tensors(tensors, &args);
            if all == 0.0 {
                assert_eq!((&report["total_norm"], &report["clip_coef"]), (&json!(0.0), &json!(1.0)), "{p}");
                assert_eq!(after, values(tensors));
                continue;
            }
            assert_near(&report["total_norm"], all, tolerance);
            assert_near(&report["clip_coef"], limit / (all + 1e-6), tolerance + 4.0);
            let norm_after = if p == "0" { all } else { limit * all / (all + 1e-6) };
            assert_near(&report["total_norm_after"], norm_after, 2.0 * tolerance + 6.0);
            assert_scaled(&after, &values(tensors), limit / (all + 1e-6));
            for (index, tensor) in tensors.iter().enumerate() {
                let tensor_norm = norm(exponent, std::slice::from_ref(tensor));
                let found = &report["tensors"][index]["norm"];
                if tensor_norm == 0.0 {
                    assert_eq!(found, 0.0);
                } else {
                    assert_near(found, tensor_norm, tolerance);
                }
            }
        }
    }
}

#[test]
fn each_tensor_separately() {
    let tensors = [("large", &[3.0, 4.0][..]), ("small", &[0.3, 0.4]), ("one", &[-2.0])];
    let (report, after) = clip_tensors(&tensors, &["--max-norm", "1", "--per-tensor"]);
    assert_scaled(&after[..2], &[3.0, 4.0], 1.0 / (5.0 + 1e-6));
    assert_eq!(after[2..4], [0.3, 0.4], "it is within the limit");
    assert_scaled(&after[4..], &[-2.0], 1.0 / (2.0 + 1e-6));

    for (row, coef) in report["tensors"].as_array().unwrap().iter().zip([0.2, 1.0, 0.5]) {
        assert_near(&row["clip_coef"], coef, 20.0);
    }
    assert_eq!(report["clip_coef"], Value::Null);
    assert_near(&report["total_norm"], norm(2.0, &tensors), 1.01);
    assert_near(&report["total_norm_after"], 2.25_f64.sqrt(), 20.0);
}

#[test]
fn each_policy_for_non_finite_gradients() {
    let tensors = [("fine", &[2.0, -3.0][..]), ("broken", &[1.0, f32::INFINITY])];
    let after = |policy: &str, more: &[&str]| {
        let (report, after) =
            clip_tensors(&tensors, &[&["--max-norm", "1", "--nonfinite", policy], more].concat());
        assert_eq!(report["non_finite"], true, "{policy}");
        after
    };
    let propagated = after("propagate", &[]);
    assert_eq!(propagated[..3], [0.0; 3]);
    assert!(propagated[3].is_nan());
    assert_eq!(after("skip", &[]), values(&tensors));
    assert_eq!(after("zero", &[]), [0.0; 4]);
    assert!(after("poison", &[]).iter().all(|value| value.is_nan()));

    // Per tensor, only the non-finite tensor is zeroed.
    let alone = after("zero", &["--per-tensor"]);
    assert_scaled(&alone[..2], &[2.0, -3.0], 1.0 / (13_f64.sqrt() + 1e-6));
    assert_eq!(alone[2..], [0.0; 2]);

    // The policy does not affect finite gradients.
    let usual = clip_tensors(&TENSORS, &["--max-norm", "1"]).1;
    for policy in ["propagate", "skip", "zero", "poison", "error"] {
        assert_eq!(clip_tensors(&TENSORS, &["--max-norm", "1", "--nonfinite", policy]).1, usual, "{policy}");
    }
}

#[test]
fn an_error_names_the_tensor_and_writes_nothing() {
    let (folder, file) = folder_with(&with_tensors(&[("fine", &[2.0]), ("br\nken", &[1.0, f32::NAN])]));
    let out = folder.path().join("out.safetensors");
    for more in [&[][..], &["--per-tensor"], &["--groups", "f*=1"], &["--norm-type", "-inf"]] {
        let args = [&["--max-norm", "1", "--nonfinite", "error", "-o", out.to_str().unwrap()], more].concat();
        let message = assert_fails(&clip(&file, &args), "error");
        assert!(message.contains(r#""br\nken""#), "{more:?}: {message}");
        assert_eq!(files(&folder), std::slice::from_ref(&file), "{more:?}");
    }
}

#[test]
fn the_loss_scale_is_undone() {
    let scaled: Vec<Vec<f32>> =
        TENSORS.iter().map(|(_, values)| values.iter().map(|value| value * 1024.0).collect()).collect();
    let scaled: Vec<_> =
        TENSORS.iter().zip(&scaled).map(|((name, _), values)| (*name, &values[..])).collect();
    for more in [
        &["--max-norm", "1"][..],
        &["--max-norm", "1e9"],
        &["--max-norm", "1", "--per-tensor"],
        &["--value", "1"],
        &["--value", "1e9"],
    ] {
        let (mut expected, unscaled) = clip_tensors(&TENSORS, more);
        let (mut report, after) = clip_tensors(&scaled, &[more, &["--loss-scale", "1024"]].concat());
        assert_eq!(after, unscaled, "{more:?}");
        for report in [&mut expected, &mut report] {
            report["seconds"].take();
        }
        assert_eq!(report, expected, "{more:?}");
    }
}

const GROUPED: [(&str, &[f32]); 6] = [
    ("body.w", &[3.0, 4.0]),
    ("body.b", &[12.0]),
    ("head.w", &[8.0]),
    ("head.b", &[6.0]),
    ("a=b", &[4.0]),
    ("odd", &[1.0]),
];

const GROUPS: [&str; 10] = [
    "--max-norm",
    "0.25",
    "--groups",
    "body.*=6.5",
    "--groups",
    "*.b=100",
    "--groups",
    "????.w=4",
    "--groups",
    "a=b=2",
];

#[test]
fn groups_have_limits_of_their_own() {
    let (report, after) = clip_tensors(&GROUPED, &GROUPS);
    // The first match wins: `body.b` does not belong to `*.b`, nor `body.w` to `????.w`.
    assert_scaled(&after, &[1.5, 2.0, 6.0, 4.0, 6.0, 2.0, 0.25], 1.0);
    assert_eq!(after[4], 6.0, "within its limit");

    let expected = [("body.*", 6.5, 13.0), ("*.b", 100.0, 6.0), ("????.w", 4.0, 8.0), ("a=b", 2.0, 4.0)];
    let groups = report["groups"].as_array().unwrap();
    assert_eq!(groups.len(), expected.len());
    for (group, (pattern, limit, norm)) in groups.iter().zip(expected) {
        assert_eq!((&group["pattern"], &group["limit"]), (&json!(pattern), &json!(limit)));
        assert_near(&group["total_norm"], norm, 1.01);
        assert_near(&group["clip_coef"], (limit / norm).min(1.0), 20.0);
        assert_near(&group["total_norm_after"], limit.min(norm), 20.0);
        assert_eq!(group.as_object().unwrap().len(), 5, "{group}");
    }
    assert_eq!(report["total_norm"], 1.0, "the norm of the tensors that match no pattern");
    assert_near(&report["clip_coef"], 0.25, 20.0);
    assert_near(&report["total_norm_after"], 0.25, 20.0);
}

/// The norm of an empty group would be 0, or infinite for p < 0, so the report omits it.
#[test]
fn groups_without_tensors_have_no_norm() {
    for more in [&[][..], &["--per-tensor"], &["--norm-type=-inf"]] {
        let args = [&["--max-norm", "1", "--groups", "*=2"], more].concat();
        let (report, _) = clip_tensors(&TENSORS, &args);
        for key in ["total_norm", "total_norm_after", "clip_coef"] {
            assert_eq!(report[key], Value::Null, "{more:?}: {key}");
        }
        assert!(report["groups"][0]["total_norm"].is_f64(), "{more:?}");
        assert_eq!(report["non_finite"], false, "{more:?}");
        let (_folder, file) = folder_with(&with_tensors(&TENSORS));
        let table = String::from_utf8(clip(&file, &args).stdout).unwrap();
        assert!(!table.contains("(others)"), "{table}");
    }
}

#[test]
fn per_tensor_clips_use_the_limit_of_the_group() {
    let (report, after) = clip_tensors(&GROUPED, &[&GROUPS[..], &["--per-tensor"]].concat());
    assert_scaled(&after, &[3.0, 4.0, 6.5, 4.0, 6.0, 2.0, 0.25], 1.0);
    assert_eq!(report["groups"][0]["clip_coef"], Value::Null);
    assert_near(&report["tensors"][1]["clip_coef"], 6.5 / 12.0, 20.0);
}

#[test]
fn the_table_has_a_line_for_each_group() {
    let (_folder, file) = folder_with(&with_tensors(&GROUPED));
    let table = String::from_utf8(clip(&file, &GROUPS).stdout).unwrap();
    let words: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["tensor", "dtype", "shape", "norm", "group"]);
    assert_eq!(words[2], ["body.b", "F32", "[1]", "12", "body.*"]);
    let line = |name: &str| words.iter().find(|words| words.first() == Some(&name)).unwrap();
    assert_eq!(line("*.b")[1..], ["6", "6", "1", "100"]);
    assert_eq!((line("(others)")[1], line("(others)")[4]), ("1", "0.25"));
}

#[test]
fn a_supplied_norm_replaces_the_measured_norm() {
    let tensors = [("a", &[30.0, -4.0][..]), ("b", &[0.5])];
    let scaled = |after: &[f32], factor: f32| {
        after.iter().zip([30.0, -4.0, 0.5]).all(|(after, before)| (after - before * factor).abs() <= 1e-5)
    };
    let (report, after) = clip_tensors(&tensors, &["--max-norm", "1", "--total-norm", "100"]);
    assert!(scaled(&after, 0.01), "{after:?}");
    assert_eq!(report["total_norm"], 100.0);
    assert_near(&report["total_norm_after"], (900.0 + 16.0 + 0.25_f64).sqrt() / 100.0, 20.0);
    assert_near(&report["clip_coef"], 0.01, 20.0);
    // The supplied norm is that of the unscaled gradients.
    let args = ["--max-norm", "1", "--total-norm", "10", "--loss-scale", "8"];
    assert!(scaled(&clip_tensors(&tensors, &args).1, 0.1 / 8.0));
    assert!(scaled(&clip_tensors(&tensors, &["--max-norm", "1", "--total-norm", "0.5"]).1, 1.0));
    let args = ["--max-norm", "1", "--total-norm", "NaN", "--nonfinite", "skip"];
    assert!(scaled(&clip_tensors(&tensors, &args).1, 1.0));
    let args = ["--max-norm", "1", "--total-norm", "inf", "--nonfinite", "zero"];
    assert!(scaled(&clip_tensors(&tensors, &args).1, 0.0));

    let (_folder, file) = folder_with(&with_tensors(&tensors));
    let usages: [&[&str]; 6] = [
        &["--value", "1"],
        &["--max-norm", "1", "--per-tensor"],
        &["--max-norm", "1", "--norm-type", "1"],
        &["--max-norm", "1", "--groups", "a=1"],
        &["--max-norm", "1", "--total-norm", "-1"],
        &[],
    ];
    for usage in usages {
        let output = clip(&file, &[&["--total-norm", "1"], usage].concat());
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b""[..]), "{usage:?}");
    }
    let args = ["--max-norm", "1", "--total-norm", "inf", "--nonfinite", "error"];
    let message = assert_fails(&clip(&file, &args), "infinite");
    assert!(message.contains("--total-norm is inf") && !message.contains("element"), "{message}");
}
