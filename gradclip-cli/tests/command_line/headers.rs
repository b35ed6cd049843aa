//! Damaged or huge headers, and files of other formats.

use crate::{assert_fails, bytes, clip, clip_json, files, folder_with, raw};

/// Returns a header entry.
fn entry(dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

fn single(entry: &str) -> String {
    format!(r#"{{"w":{entry}}}"#)
}

/// Asserts that `content` is rejected with a message that contains all `words` and the file's name, and that no file is
/// left.
fn assert_rejected(name: &str, content: &[u8], words: &[&str]) {
    let (folder, file) = folder_with(content);
    let out = folder.path().join("out.safetensors");
    let output = clip(&file, &["--max-norm", "1", "--json", "-o", out.to_str().unwrap()]);
    let message = assert_fails(&output, name);
    assert!(message.contains("gradients.safetensors"), "{name}: {message}");
    for word in words {
        assert!(message.contains(word), "{name}: no {word:?} in {message}");
    }
    assert!(message.len() < 1000, "{name}: {} bytes", message.len());
    assert_eq!(files(&folder), [file], "{name}");
}

#[test]
fn damaged_lengths_are_rejected() {
    let sound = raw(&single(&entry("F32", "[2]", 0, 8)), &[0; 8]);
    let length = |len: u64| [&len.to_le_bytes(), &sound[8..]].concat();
    let cases: [(&str, Vec<u8>, &[&str]); 6] = [
        ("empty", vec![], &["0 bytes"]),
        ("shorter than its length", vec![1, 2, 3, 4], &["4 bytes"]),
        ("huge header", length(u64::MAX), &["header", "18446744073709551615"]),
        ("header past the end", length(100), &["a header of 100 bytes", "62 bytes follow"]),
        ("data truncated", sound[..sound.len() - 1].to_vec(), &["describes 8 bytes", "7 bytes follow"]),
        ("data left over", [&sound[..], &[0]].concat(), &["describes 8 bytes", "9 bytes follow"]),
    ];
    for (name, content, words) in cases {
        assert_rejected(name, &content, words);
    }
    let (_folder, file) = folder_with(&sound);
    assert!(clip(&file, &["--max-norm", "1"]).status.success(), "the undamaged file is valid");
}

/// Each error names the tensor and the wrong field.
#[test]
fn damaged_entries_are_rejected() {
    let w = |shape, start, end| single(&entry("F32", shape, start, end));
    let cases: [(&str, String, usize, &[&str]); 20] = [
        ("not JSON", "gradients!".into(), 0, &["not valid JSON"]),
        ("cut JSON", r#"{"w":{"dtype":"F32""#.into(), 0, &["tensor \"w\"", "EOF"]),
        ("not an object", "[1, 2]".into(), 0, &["header is damaged", "sequence", "object"]),
        ("no tensors", "{}".into(), 0, &["no tensors"]),
        ("metadata only", r#"{"__metadata__":{"a":"b"}}"#.into(), 0, &["no tensors"]),
        (
            "tensor not an object",
            single("7"),
            0,
            &["tensor \"w\"", "integer `7`", "dtype, shape and data_offsets"],
        ),
        (
            "a list of the fields",
            single(r#"["F32",[2],[0,8]]"#),
            8,
            &["tensor \"w\"", "dtype, shape and data_offsets"],
        ),
        (
            "no dtype",
            single(r#"{"shape":[2],"data_offsets":[0,8]}"#),
            8,
            &["tensor \"w\"", "missing field `dtype`"],
        ),
        (
            "no shape",
            single(r#"{"dtype":"F32","data_offsets":[0,8]}"#),
            8,
            &["tensor \"w\"", "missing field `shape`"],
        ),
        (
            "no offsets",
            single(r#"{"dtype":"F32","shape":[2]}"#),
            8,
            &["tensor \"w\"", "missing field `data_offsets`"],
        ),
        (
            "dtype a number",
            single(r#"{"dtype":32,"shape":[2],"data_offsets":[0,8]}"#),
            8,
            &["\"w\"", "dtype", "`32`"],
        ),
        ("negative shape", w("[-2]", 0, 8), 8, &["tensor \"w\"", "shape", "`-2`"]),
        ("fractional shape", w("[2.5]", 0, 8), 8, &["tensor \"w\"", "shape", "`2.5`"]),
        (
            "one offset",
            single(r#"{"dtype":"F32","shape":[2],"data_offsets":[8]}"#),
            8,
            &["tensor \"w\"", "data_offsets", "the number of offsets is 1"],
        ),
        (
            "three offsets",
            single(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}"#),
            8,
            &["tensor \"w\"", "data_offsets", "more than the 2 numbers"],
        ),
        (
            "metadata twice",
            r#"{"__metadata__":{},"__metadata__":{}}"#.into(),
            0,
            &["duplicate field `__metadata__`"],
        ),
        (
            "metadata not text",
            r#"{"__metadata__":{"step":7}}"#.into(),
            0,
            &["__metadata__", "\"step\"", "`7`"],
        ),
        ("metadata a list", r#"{"__metadata__":["a"]}"#.into(), 0, &["__metadata__", "object of strings"]),
        (
            "a key of metadata twice",
            r#"{"__metadata__":{"a":"b","a":"c"}}"#.into(),
            0,
            &["__metadata__", "\"a\" appears twice"],
        ),
        (
            "a name with terminal control characters",
            "{\"\\u001b[31m\\u202e\\n\":7}".into(),
            0,
            &[r"\u{1b}[31m\u{202e}\n"],
        ),
    ];
    for (name, header, data, words) in cases {
        assert_rejected(name, &raw(&header, &vec![0; data]), words);
    }
    assert_rejected("not UTF-8", &[&1_u64.to_le_bytes()[..], &[0xff]].concat(), &["not valid JSON"]);
    let long = format!(r#"{{"{}":7}}"#, "x".repeat(60_000));
    assert_rejected("a long name", &raw(&long, &[]), &["xx…xx"]);
}

/// Each error names the tensors and the inconsistent numbers.
#[test]
fn inconsistent_sizes_and_offsets_are_rejected() {
    let w = |shape, start, end| single(&entry("F32", shape, start, end));
    let two = |v: &str, w: &str| format!(r#"{{"v":{v},"w":{w}}}"#);
    let f32 = |start, end| entry("F32", "[2]", start, end);
    let cases: [(&str, String, usize, &[&str]); 10] = [
        (
            "shape and size differ",
            w("[3]", 0, 8),
            8,
            &["tensor \"w\"", "[3] of F32", "12 bytes", "[0, 8] span 8"],
        ),
        (
            "half an element",
            single(&entry("F16", "[3]", 0, 7)),
            7,
            &["tensor \"w\"", "6 bytes", "[0, 7] span 7"],
        ),
        (
            "shape overflows",
            w("[18446744073709551615,2]", 0, 8),
            8,
            &["tensor \"w\"", "18446744073709551615, 2]", "overflows"],
        ),
        ("offsets backwards", w("[2]", 8, 0), 8, &["tensor \"w\"", "[8, 0]"]),
        ("a gap before", w("[2]", 4, 12), 12, &["tensor \"w\"", "bytes 0 to 4"]),
        ("a gap between", two(&f32(0, 8), &f32(12, 20)), 20, &["tensor \"w\"", "bytes 8 to 12"]),
        ("overlapping", two(&f32(0, 8), &f32(4, 12)), 12, &["\"v\" and \"w\" overlap", "[0, 8] and [4, 12]"]),
        ("the same place", two(&f32(0, 8), &f32(0, 8)), 8, &["\"v\" and \"w\" overlap", "[0, 8] and [0, 8]"]),
        (
            "nothing, amid others",
            two(&f32(0, 8), &entry("F32", "[0]", 4, 4)),
            8,
            &["overlap", "[0, 8] and [4, 4]"],
        ),
        ("a name twice", format!(r#"{{"w":{},"w":{}}}"#, f32(0, 8), f32(8, 16)), 16, &["tensor \"w\" twice"]),
    ];
    for (name, header, data, words) in cases {
        assert_rejected(name, &raw(&header, &vec![0; data]), words);
    }
}

/// A duplicate is rejected even if one of the two values is valid.
#[test]
fn duplicate_names_and_fields_are_rejected() {
    let good = entry("F32", "[2]", 0, 8);
    for bad in
        ["7", "null", r#"{"dtype":"F32"}"#, r#"{"dtype":"F32","shape":"?","data_offsets":[0,8]}"#, &good]
    {
        assert_rejected(bad, &raw(&format!(r#"{{"w":{bad},"w":{good}}}"#), &[0; 8]), &["\"w\""]);
        assert_rejected(bad, &raw(&format!(r#"{{"w":{good},"w":{bad}}}"#), &[0; 8]), &["\"w\""]);
    }
    for (field, value) in [("dtype", r#""F32""#), ("shape", "[2]"), ("data_offsets", "[0,8]")] {
        for first in ["7", value] {
            let twice = good.replacen('{', &format!(r#"{{"{field}":{first},"#), 1);
            assert_rejected(&twice, &raw(&single(&twice), &[0; 8]), &["\"w\"", field]);
        }
    }
}

#[test]
fn dtypes_that_cannot_be_clipped_are_named() {
    let i64 = single(&entry("I64", "[1]", 0, 8));
    let words = ["\"w\" has dtype \"I64\"", "F32, F16 and BF16", "--exclude"];
    assert_rejected("I64", &raw(&i64, &[0; 8]), &words);
    assert_rejected(
        "unheard of",
        &raw(&single(&entry("Q8", "[9]", 0, 8)), &[0; 8]),
        &["\"w\" has dtype \"Q8\""],
    );
    let several = format!(r#"{{"v":{},"w":{}}}"#, entry("F64", "[1]", 0, 8), entry("I64", "[1]", 8, 16));
    assert_rejected(
        "several",
        &raw(&several, &[0; 16]),
        &["\"v\" has dtype \"F64\"", "the first of 2 such tensors"],
    );
}

#[test]
fn other_formats_are_recognised() {
    let pickle = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    let cases: [(&str, &[u8], &str); 10] = [
        (
            "LFS",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "Git LFS pointer",
        ),
        ("HTML", b"\n<!DOCTYPE html>\n<html><body>403</body></html>", "HTML page"),
        ("html", b"<html lang=\"en\"><head></head></html>", "HTML page"),
        ("zip", b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0archive/data.pkl", "zip archive"),
        ("pickle", pickle, "pickle"),
        ("NumPy", b"\x93NUMPY\x01\0v\0{'descr': '<f4'}", "NumPy"),
        ("GGUF", b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0", "GGUF"),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03garbage", "gzip"),
        ("index", br#"{"metadata":{},"weight_map":{"w":"a.safetensors"}}"#, "its name must end in .json"),
        ("config", b"{\n  \"hidden_size\": 8\n}", "JSON"),
    ];
    for (name, content, words) in cases {
        assert_rejected(name, content, &[words, "not a .safetensors file"]);
    }
    // Header lengths that begin with the signatures of other formats.
    for len in [0x0280, 0x8b1f, 123] {
        let sound = single(&entry("F32", "[2]", 0, 8));
        let file = raw(&format!("{sound:len$}"), &bytes(&[3.0, 4.0]));
        let (_folder, path) = folder_with(&file);
        assert_eq!(clip_json(&path, &["--max-norm", "1"])["total_norm"], 5.0);
        let damaged = raw(&format!("{:len$}", sound.replace("F32", "F16")), &[0; 8]);
        assert_rejected("damaged", &damaged, &["\"w\"", "4 bytes", "span 8"]);
    }
}

/// Memory use and output stay proportional to the header's length.
#[test]
#[cfg(target_os = "linux")]
fn memory_is_proportional_to_the_header() {
    use std::fmt::Write as _;

    let with = |entries: usize, name: &dyn Fn(usize) -> String, shape: &str| {
        let mut header = String::from("{");
        for index in 0..entries {
            let separator = if index == 0 { "" } else { "," };
            write!(header, r#"{separator}"{}":{}"#, name(index), entry("F32", shape, 0, 0)).unwrap();
        }
        header + "}"
    };
    let short = |index: usize| format!("t{index}");
    let long = |index: usize| if index == 0 { "n".repeat(60_000) } else { short(index) };
    let cases = [
        ("one long name", with(50_000, &long, "[0]"), true),
        ("long shapes", with(20, &short, &format!("[{}0]", "0,".repeat(150_000))), true),
        ("a longer shape", with(1, &short, &format!("[{}0]", "0,".repeat(5_000_000))), false),
        (
            "offsets without end",
            format!(r#"{{"w":{{"data_offsets":[{}0]}}}}"#, "0,".repeat(5_000_000)),
            false,
        ),
        ("nesting", format!(r#"{{"w":{{"more":{}}}}}"#, "[".repeat(5_000_000)), false),
    ];
    for (name, header, is_fine) in cases {
        let (folder, file) = folder_with(&raw(&header, &[]));
        for args in [&[][..], &["--json"]] {
            // The constant covers the program and the stacks of its threads.
            let output = crate::clip_within(512 * 1024 + header.len() * 8 / 1024, &file, args);
            let code = output.status.code();
            assert_eq!(
                code,
                Some(i32::from(!is_fine)),
                "{name}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(output.stdout.len() < 4 * header.len(), "{name}: {} bytes", output.stdout.len());
        }
        drop(folder);
    }
}
