//! Several files as one set of gradients, sharded models, and files that are read in chunks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use gradclip::cpu::{self, Gradient};
use gradclip::{Clip, NormType};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    assert_fails, assert_near, bytes, clip_json, command, elements, files, folder_with, with_tensors,
    with_types,
};

type Tensors = &'static [(&'static str, &'static [f32])];

const SHARDS: [(&str, Tensors); 2] = [
    ("model-00001-of-00002.safetensors", &[("a.w", &[3.0, 4.0]), ("a.b", &[0.0])]),
    ("model-00002-of-00002.safetensors", &[("b.w", &[12.0, -84.0])]),
];
const INDEX: &str = "model.safetensors.index.json";

fn index(shards: &[(&str, &str)]) -> String {
    let map: serde_json::Map<_, _> =
        shards.iter().map(|(tensor, file)| ((*tensor).to_owned(), json!(file))).collect();
    format!("{:#}\n", json!({ "metadata": { "total_size": 20 }, "weight_map": map }))
}

fn sound_index() -> String {
    let [(first, _), (second, _)] = SHARDS;
    index(&[("a.w", first), ("a.b", first), ("b.w", second)])
}

/// Creates a folder with the shards and `index`.
fn model(index: &str) -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    for (name, tensors) in SHARDS {
        fs::write(folder.path().join(name), with_tensors(tensors)).unwrap();
    }
    fs::write(folder.path().join(INDEX), index).unwrap();
    let paths = files(&folder);
    (folder, paths)
}

fn run(inputs: &[&Path], args: &[&str]) -> Output {
    command(&["clip", "--device", "cpu", "--json"]).args(inputs).args(args).output().unwrap()
}

fn report(inputs: &[&Path], args: &[&str]) -> Value {
    let output = run(inputs, args);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn several_files_have_one_norm() {
    let (folder, paths) = model(&sound_index());
    let [first, second, index] = [&*paths[0], &*paths[1], &*paths[2]];
    let out = folder.path().join("out");
    for (inputs, count) in [(&[first, second][..], 2), (&[index], 3)] {
        let report = report(inputs, &["--max-norm", "8.5", "-o", out.to_str().unwrap()]);
        assert_near(&report["total_norm"], 85.0, 4.0);
        assert_near(&report["total_norm_after"], 8.5, 6.0);
        let names: Vec<_> = report["tensors"].as_array().unwrap().iter().map(|row| &row["name"]).collect();
        assert_eq!(names, ["a.w", "a.b", "b.w"]);

        let written: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(written.len(), count, "{written:?}");
        for (file, (name, tensors)) in [first, second].into_iter().zip(SHARDS) {
            let after = elements(&out.join(name));
            let before: Vec<f32> = tensors.iter().flat_map(|(_, values)| *values).copied().collect();
            assert!(
                after.iter().zip(&before).all(|(after, before)| (after - before / 10.0).abs() < 1e-5),
                "{after:?}"
            );
            assert_eq!(fs::read(file).unwrap(), with_tensors(tensors), "the input was changed");
        }
        if count == 3 {
            assert_eq!(fs::read(out.join(INDEX)).unwrap(), sound_index().into_bytes());
        }
        fs::remove_dir_all(&out).unwrap();
    }
    // The output replaces the input.
    report(&[index], &["--value", "5", "-o", folder.path().to_str().unwrap()]);
    assert_eq!(files(&folder), paths);
    assert_eq!([elements(first), elements(second)], [vec![3.0, 4.0, 0.0], vec![5.0, -5.0]]);
}

#[test]
fn groups_and_exclusions_apply_to_all_files() {
    let (folder, paths) = model(&sound_index());
    let args =
        ["--max-norm", "1", "--groups", "?.w=42", "--exclude", "a.w", "-o", folder.path().to_str().unwrap()];
    let report = report(&[&paths[2]], &args);
    assert_near(&report["groups"][0]["total_norm"], (144.0_f64 + 84.0 * 84.0).sqrt(), 4.0);
    assert_eq!(elements(&paths[0]), [3.0, 4.0, 0.0]);
    assert!((elements(&paths[1])[1] + 84.0 * 42.0 / (144.0_f32 + 84.0 * 84.0).sqrt()).abs() < 1e-4);
}

#[test]
fn inconsistent_inputs_are_rejected() {
    let [(first, _), (second, _)] = SHARDS;
    let all = [("a.w", first), ("a.b", first), ("b.w", second)];
    let cases: [(String, &[&str]); 11] = [
        ("{}".into(), &["no weight_map"]),
        ("[1]".into(), &["not the index", "weight_map"]),
        ("nothing".into(), &["not the index"]),
        (r#"{"weight_map":{}}"#.into(), &["empty"]),
        (r#"{"weight_map":{"a.w":7}}"#.into(), &["\"a.w\"", "`7`"]),
        (r#"{"weight_map":{"a.w":"x","a.w":"y"}}"#.into(), &["\"a.w\" twice"]),
        (index(&[all[0], all[2]]), &["\"a.b\"", first, "does not list"]),
        (index(&[all[0], all[1], ("b.w", first), ("c", second)]), &["the weight_map places tensor"]),
        (index(&[all[0], all[1], all[2], ("c", second)]), &["\"c\"", second, "no file has"]),
        (index(&[all[0], ("a.b", "../x"), all[2]]), &["\"../x\"", "without a path"]),
        (index(&[all[0], ("a.b", "model-3.safetensors"), all[2]]), &["model-3.safetensors"]),
    ];
    for (index, words) in cases {
        let (folder, paths) = model(&index);
        let out = folder.path().join("out");
        let message =
            assert_fails(&run(&[&paths[2]], &["--max-norm", "1", "-o", out.to_str().unwrap()]), &index);
        assert!(words.iter().all(|word| message.contains(word)), "{index}: {message}");
        assert_eq!(files(&folder), paths, "{index}");
    }

    let (folder, paths) = model(&sound_index());
    let (other, same_name) = folder_with(&with_tensors(&[("c", &[1.0])]));
    let renamed = other.path().join(first);
    fs::rename(same_name, &renamed).unwrap();
    let [first, second, index] = [&*paths[0], &*paths[1], &*paths[2]];
    let (out, file) = (folder.path().join("out"), folder.path().join("flat"));
    fs::write(&file, b"old").unwrap();
    let cases: [(&[&Path], &Path, &[&str]); 6] = [
        (&[first, second, first], &out, &["tensor \"a.w\" is in both", " and "]),
        (&[first, &renamed], &out, &["two input files are named model-00001"]),
        (&[index, first], &out, &["no other input is allowed with it"]),
        (&[first, second], &file, &["need an output folder"]),
        (&[index], &file.join("x"), &["cannot write"]),
        (&[index], &folder.path().join("no/such"), &["cannot write"]),
    ];
    let before = files(&folder);
    for (inputs, out, words) in cases {
        let message = assert_fails(&run(inputs, &["--max-norm", "1", "-o", out.to_str().unwrap()]), "set");
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
        assert_eq!(files(&folder), before, "{words:?}");
    }
}

/// If one file cannot be replaced, none is.
#[test]
fn nothing_is_written_if_one_file_cannot_be() {
    let (folder, paths) = model(&sound_index());
    let out = folder.path().join("out");
    fs::create_dir_all(out.join(SHARDS[1].0)).unwrap();
    let message =
        assert_fails(&run(&[&paths[2]], &["--max-norm", "1", "-o", out.to_str().unwrap()]), "folder");
    assert!(message.contains(SHARDS[1].0) && message.contains("not a regular file"), "{message}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}

#[expect(clippy::cast_possible_truncation, reason = "it is an f32")]
fn single(number: &Value) -> f32 {
    number.as_f64().unwrap() as f32
}

/// Gradients longer than a chunk are clipped to the same bits as gradients in memory.
#[test]
fn chunks_give_the_same_bits_as_whole_tensors() {
    let mut state = 1_u32;
    let mut number = || {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        (f32::from((state >> 16) as u16) - 32768.0) / 1e3
    };
    // A chunk has 2^22 F32 elements.
    let long: Vec<f32> = (0..(1 << 22) + 70_001).map(|_| number()).collect();
    let short: Vec<f32> = (0..1000).map(|_| number()).collect();
    let half =
        |values: &[f32]| -> Vec<half::bf16> { values.iter().map(|&x| half::bf16::from_f32(x)).collect() };
    let brain = half(&long);
    let of_halves: Vec<u8> = brain.iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensors = [
        // Leaves the following tensors unaligned.
        ("odd", "BF16", 2, half(&short[..1])[0].to_le_bytes().to_vec()),
        ("long", "F32", 4, bytes(&long)),
        ("brain", "BF16", 2, of_halves),
        ("short", "F32", 4, bytes(&short)),
    ];
    let (folder, file) = folder_with(&with_types(&tensors));
    let out = folder.path().join("out.safetensors");
    let clip = Clip::by_global_norm(1.0);
    let cases = [
        (&["--max-norm", "1"][..], clip),
        (&["--max-norm", "1", "--per-tensor"], Clip::by_norm(1.0)),
        (
            &["--max-norm", "1", "--norm-type", "1", "--loss-scale", "4"],
            clip.norm_type(NormType::L1).loss_scale(4.0),
        ),
        (&["--value", "3"], Clip::by_value(3.0)),
    ];
    for (args, clip) in cases {
        let report = clip_json(&file, &[args, &["-o", out.to_str().unwrap()]].concat());
        let (mut odd, mut long, mut brain, mut short) =
            (half(&short[..1]), long.clone(), brain.clone(), short.clone());
        let mut gradients = [
            Gradient::bf16(&mut odd),
            Gradient::f32(&mut long),
            Gradient::bf16(&mut brain),
            Gradient::f32(&mut short),
        ];
        let records = cpu::clip(&mut gradients, clip).unwrap();
        if let [record] = records[..] {
            let found = ["total_norm", "clip_coef"].map(|key| single(&report[key]));
            assert_eq!(found, [record.total_norm, record.clip_coef], "{args:?}");
        }
        let halves = |values: &[half::bf16]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let expected = [halves(&odd), bytes(&long), halves(&brain), bytes(&short)].concat();
        let written = fs::read(&out).unwrap();
        assert!(written[written.len() - expected.len()..] == expected, "{args:?}");
    }
}

/// Clips 2 GiB within 1 GiB of address space.
#[test]
#[cfg(target_os = "linux")]
fn files_may_be_larger_than_memory() {
    const BYTES: u64 = 2 << 30;
    let header =
        format!(r#"{{"zeros":{{"dtype":"F32","shape":[{}],"data_offsets":[0,{BYTES}]}}}}"#, BYTES / 4);
    let (_folder, file) = folder_with(&crate::raw(&header, &[]));
    let sparse = fs::OpenOptions::new().append(true).open(&file).unwrap();
    sparse.set_len(8 + header.len() as u64 + BYTES).unwrap();
    let output = crate::clip_within(1 << 20, &file, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["total_norm"], &report["tensors"][0]["norm"]), (&json!(0.0), &json!(0.0)));
}

/// A GPU needs the gradients in memory. The command checks that they fit before it reads them.
#[test]
#[cfg(target_os = "linux")]
fn a_set_that_does_not_fit_into_memory_is_an_error() {
    const BYTES: u64 = 1 << 43;
    let tensors = format!(
        r#""small":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}},"large":{{"dtype":"F32","shape":[{}],"data_offsets":[4,{}]}}"#,
        BYTES / 4,
        BYTES + 4
    );
    let header = format!("{{{tensors}}}");
    let (folder, file) = folder_with(&crate::raw(&header, &[]));
    let sparse = fs::OpenOptions::new().append(true).open(&file).unwrap();
    sparse.set_len(8 + header.len() as u64 + BYTES + 4).unwrap();
    let out = folder.path().join("out.safetensors");
    let args = ["clip", "--device", "gpu", "--max-norm", "1", "-o", out.to_str().unwrap()];
    let message = assert_fails(&command(&args).arg(&file).output().unwrap(), "memory");
    for words in ["tensor \"large\" alone takes 8796093022208", "8796093022212 bytes", "--device cpu"] {
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(files(&folder), [file]);
}

/// The second file would replace the first.
#[test]
#[cfg(unix)]
fn two_outputs_that_are_the_same_file_are_rejected() {
    use std::os::unix::fs::symlink;

    let (folder, paths) = model(&sound_index());
    let [first, second] = [&*paths[0], &*paths[1]];
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    let place = |file: &Path| out.join(file.file_name().unwrap());
    fs::write(place(first), b"old").unwrap();
    symlink(place(first), place(second)).unwrap();
    let output = run(&[first, second], &["--max-norm", "1", "-o", out.to_str().unwrap()]);
    let message = assert_fails(&output, "one file");
    assert!(message.contains("lead to this file"), "{message}");
    assert_eq!(fs::read(place(first)).unwrap(), b"old");
}

#[test]
fn a_plot_replaces_no_shard_and_no_output() {
    let folder = tempfile::tempdir().unwrap();
    let [shard, index, out] = ["shard.svg", INDEX, "out"].map(|name| folder.path().join(name));
    let tensors = with_tensors(&[("w", &[3.0])]);
    fs::write(&shard, &tensors).unwrap();
    fs::write(&index, self::index(&[("w", "shard.svg")])).unwrap();
    fs::create_dir(&out).unwrap();
    for plot in [&shard, &out.join("shard.svg")] {
        let args = ["--max-norm", "1", "-o", out.to_str().unwrap(), "--plot", plot.to_str().unwrap()];
        let message = assert_fails(&run(&[&index], &args), "plot");
        assert!(message.contains("already reads or writes this file"), "{message}");
    }
    assert_eq!(fs::read(&shard).unwrap(), tensors);
}
