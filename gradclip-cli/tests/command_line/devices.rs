//! `gradclip devices`, and `gradclip clip` on every device.

use serde_json::Value;

use crate::half_precision::mixed;
use crate::{SHIPPED, assert_near, clip_json, command, folder_with};

/// All devices give the same report up to the last bits. An unknown GPU is an error.
#[test]
fn every_device_gives_the_same_norms() {
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
    let unknown = on("no such GPU");
    assert_eq!((unknown.status.code(), &unknown.stdout[..]), (Some(1), &b""[..]));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no such GPU"), "{unknown:?}");
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
fn every_device_gives_the_same_report_for_every_option() {
    let (_folder, file) = folder_with(&mixed());
    let option_sets: [&[&str]; 10] = [
        &["--exclude", "half", "--exclude", "w1"],
        &["--total-norm", "7"],
        &["--total-norm", "inf", "--nonfinite", "zero", "--loss-scale", "2"],
        &["--norm-type", "1"],
        &["--norm-type", "inf", "--loss-scale", "8"],
        &["--norm-type", "-inf"],
        &["--norm-type", "0"],
        &["--per-tensor"],
        &["--groups", "w?=0.25", "--groups", "h*=2"],
        &["--value", "0.25", "--loss-scale", "8"],
    ];
    let devices: Value =
        serde_json::from_slice(&command(&["devices", "--json"]).output().unwrap().stdout).unwrap();
    for adapter in devices["adapters"].as_array().unwrap() {
        let name = adapter["name"].as_str().unwrap();
        for options in option_sets {
            let limit: &[&str] = if options[0] == "--value" { &[] } else { &["--max-norm", "0.5"] };
            let args = [limit, options].concat();
            let output =
                command(&["clip", "--device", name]).arg(&file).args(&args).arg("--json").output().unwrap();
            assert!(output.status.success(), "{name}, {options:?}: {output:?}");
            let report = serde_json::from_slice(&output.stdout).unwrap();
            assert_alike(&report, &clip_json(&file, &args), "");
        }
    }
}

/// Asserts that two reports have the same keys, and numbers that differ at most in the last bits.
fn assert_alike(one: &Value, other: &Value, key: &str) {
    match (one, other) {
        (Value::Object(fields), Value::Object(others)) => {
            assert!(fields.keys().eq(others.keys()), "{one} and {other}");
            let fields = fields.iter().filter(|(key, _)| !["device", "seconds"].contains(&key.as_str()));
            fields.for_each(|(key, field)| assert_alike(field, &others[key], key));
        }
        (Value::Array(items), Value::Array(others)) => {
            assert_eq!(items.len(), others.len(), "{key}");
            items.iter().zip(others).for_each(|(item, other)| assert_alike(item, other, key));
        }
        // Half-precision elements may round differently.
        (Value::Number(_), Value::Number(number)) if key == "total_norm_after" => {
            let (one, other) = (one.as_f64().unwrap(), number.as_f64().unwrap());
            assert!((one - other).abs() <= 1e-3 * other, "{key}: {one} and {other}");
        }
        (Value::Number(_), Value::Number(number)) if number.as_f64() != Some(0.0) => {
            assert_near(one, number.as_f64().unwrap(), 8.0);
        }
        _ => assert_eq!(one, other, "{key}"),
    }
}
