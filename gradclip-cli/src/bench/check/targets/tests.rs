use std::path::Path;

use serde_json::{Value, json};

use super::*;

const CARD: &str = "NVIDIA H100 80GB HBM3 (vulkan, 1)";

fn machine(library: &str, gpu: &str) -> Value {
    json!({ "kind": "machine", "library": library, "version": "1", "gpu": gpu, "threads": 4 })
}

/// Creates a GPU row. Its bandwidth counts one read pass.
fn row(set: &str, tensors: usize, elements: u64, layout: &str, operation: &str, seconds: f64) -> Value {
    json!({
        "kind": if operation.starts_with("roofline") { "roofline" } else { "operation" },
        "library": "gradclip", "path": "gpu", "set": set, "dtype": "f32", "layout": layout, "operation": operation,
        "tensors": tensors, "tensors_of_model": tensors, "elements": elements, "clock": "gpu",
        "seconds": seconds, "gb_per_s": 4.0 * elements as f64 / seconds / 1e9,
    })
}

fn with(mut row: Value, key: &str, value: impl Into<Value>) -> Value {
    row[key] = value.into();
    row
}

fn read(lines: &[Value]) -> SavedLines {
    let text: Vec<_> = lines.iter().map(Value::to_string).collect();
    let mut read = SavedLines::default();
    read.add(Path::new("lines.jsonl"), &text.join("\n")).unwrap();
    read
}

/// Returns the cells `measured` and `result` of the only target whose label begins with `what`.
fn outcome(lines: &SavedLines, rated: Option<f64>, what: &str) -> [String; 2] {
    let mut found = TARGETS.iter().filter(|target| target.label.starts_with(what));
    let target = found.next().unwrap_or_else(|| panic!("no target is {what}"));
    assert!(found.next().is_none(), "several targets are {what}");
    let row = target.row(lines, rated);
    [row[2].clone(), row[3].clone()]
}

#[track_caller]
fn assert_outcome(lines: &[Value], what: &str, measured: &str, result: &str) {
    assert_eq!(outcome(&read(lines), None, what), [measured, result], "{what}");
}

#[test]
fn a_range_begins_with_the_worst_and_a_miss_says_by_how_much() {
    let norm =
        |set, percent| with(row(set, 1, 1 << 26, "arena", "norm", 1e-3), "percent_of_roofline", percent);
    let what = "norm, of the read roofline";
    assert_outcome(&[norm("2^26", 95.0)], what, "95.0 % (2^26 f32)", "met");
    assert_outcome(
        &[norm("2^26", 97.0), norm("2^27", 87.5), norm("2^28", 94.9)],
        what,
        "87.5 % (2^27 f32) to 97.0 % (2^26 f32)",
        "**missed** by 7.5 points, in 2 of 3",
    );
}

#[test]
fn runs_of_the_same_set_are_joined_by_their_median() {
    let run = |percent| {
        let norm = row("2^26", 1, 1 << 26, "arena", "norm", 1e-3);
        [machine("gradclip", CARD), with(norm, "percent_of_roofline", percent)]
    };
    let lines: Vec<Value> = [90.0, 96.0, 99.0].into_iter().flat_map(run).collect();
    assert_outcome(&lines, "norm, of the read roofline", "96.0 % (2^26 f32)", "met");
}

#[test]
fn ratios_are_of_one_run_and_one_layout() {
    let run = |norm: f64, clip: f64| {
        [
            machine("gradclip", CARD),
            row("2^26", 1, 1 << 26, "arena", "roofline: in place", 2e-3),
            row("2^26", 1, 1 << 26, "arena", "norm", norm),
            row("2^26", 1, 1 << 26, "separate", "norm", 10.0),
            row("2^26", 1, 1 << 26, "arena", "clip not exceeded", clip),
            row("2^26", 1, 1 << 26, "arena", "clip exceeded", 3e-3 + clip),
            row("2^26", 1, 1 << 26, "arena", "coefficient only", clip),
        ]
    };
    // Mixing the runs would give another ratio.
    let lines = [run(1e-3, 1.1e-3), run(2e-3, 2.2e-3)].concat();
    let result = "**missed** by 4.8 %, in 1 of 1";
    assert_outcome(&lines, "not exceeded / norm", "1.100 (2^26 f32)", result);
    assert_outcome(
        &lines[..7],
        "exceeded / (norm + in place)",
        "1.367 (2^26 f32)",
        "**missed** by 30.2 %, in 1 of 1",
    );
    assert_outcome(&lines, "coefficient only / norm", "1.100 (2^26 f32)", "**missed** by 7.8 %, in 1 of 1");
}

#[test]
fn sets_below_64_mib_do_not_count() {
    let norm = |elements| with(row("some", 1, elements, "arena", "norm", 1e-3), "percent_of_roofline", 10.0);
    let what = "norm, of the read roofline";
    let none = "not measured: no line of `gradclip bench` on a GPU measures a set of 64 MiB or more";
    assert_outcome(&[norm((16 << 20) - 1)], what, none, "-");
    assert_outcome(&[norm(16 << 20)], what, "10.0 % (some f32)", "**missed** by 85.0 points, in 1 of 1");
}

#[test]
fn the_rated_bandwidth_counts_where_the_roofline_reaches_it() {
    let lines = |gpu, reads: f64, norm: f64| {
        // 1 GiB.
        let row = |operation, rate: f64| {
            row("2^28", 1, 1 << 28, "arena", operation, f64::from(1 << 30) / rate / 1e9)
        };
        read(&[machine("gradclip", gpu), row("roofline: read", reads), row("norm", norm)])
    };
    let what = "norm, of the card's rated";
    let unknown = "not measured: the card's rated bandwidth is unknown (`--rated`)";
    for (gpu, reads, rated, measured, result) in [
        (CARD, 3350.0, None, "91.0 % (2^28 f32)", "met"),
        (
            CARD,
            3000.0,
            None,
            "the read roofline reaches 89.6 % of the rated bandwidth, but must reach 90 %",
            "does not apply",
        ),
        ("another card", 3350.0, None, unknown, "-"),
        ("another card", 3350.0, Some(3387.2), "90.0 % (2^28 f32)", "met"),
    ] {
        let lines = lines(gpu, reads, 0.91 * 3350.0);
        assert_eq!(outcome(&lines, rated, what), [measured, result], "{gpu}, {reads}, {rated:?}");
    }
}

#[test]
fn pytorch_is_compared_with_either_layout_of_its_own_run() {
    let pytorch = |foreach, seconds| {
        let row = row("gpt2-small", 148, 124_439_808, "slices", "clamp", seconds);
        with(with(row, "library", "pytorch"), "foreach", foreach)
    };
    let lines = [
        machine("pytorch", "a card"),
        machine("gradclip", CARD),
        row("gpt2-small", 148, 124_439_808, "arena", "clamp", 1e-3),
        row("gpt2-small", 148, 124_439_808, "separate", "clamp", 2e-3),
        pytorch(true, 3e-3),
        pytorch(false, 1e-6),
        machine("gradclip", CARD),
        row("gpt2-small", 148, 124_439_808, "arena", "clamp", 1e-6),
    ];
    assert_outcome(
        &lines,
        "PyTorch foreach / gradclip, clamp",
        "1.500 (gpt2-small f32, separate) to 3.000 (gpt2-small f32, arena)",
        "**missed** by 16.7 %, in 1 of 2",
    );
    let absent = "not measured: no lines of `compare.py --device cuda`";
    assert_outcome(&lines[1..4], "PyTorch foreach / gradclip, clamp", absent, "-");
}

#[test]
fn models_in_separate_buffers_have_bounds_of_their_own() {
    let of = |tensors, layout, seconds| {
        let row = row("model", tensors, 1 << 26, layout, "loss scale", seconds);
        with(with(row, "encode_seconds", 90e-6), "prepare_seconds", 310e-6)
    };
    let lines = [of(291, "arena", 1e-3), of(291, "separate", 1.2e-3), of(292, "separate", 9.0)];
    for (what, measured, result) in [
        ("148 to 291", "1.200 (model f32, loss scale)", "**missed** by 9.1 %, in 1 of 1"),
        ("encode, 148", "90.0 µs (model f32, loss scale)", "met"),
        ("encode, one", "90.0 µs (model f32, loss scale)", "**missed** by 80.0 µs, in 1 of 1"),
        ("prepare again", "310.0 µs (model f32, loss scale)", "**missed** by 10.0 µs, in 1 of 1"),
    ] {
        assert_outcome(&lines, what, measured, result);
    }
    let host = json!({
        "kind": "host", "library": "gradclip", "gpu": CARD, "buffers": 291, "dispatches": 21,
        "encode_seconds": 2e-6, "ready_seconds": 70e-6, "prepare_seconds": 299e-6,
    });
    assert_outcome(&[host], "prepare again", "299.0 µs (host bench, 291 buffers)", "met");
    assert_outcome(
        &lines[2..],
        "prepare again",
        "not measured: no line of `gradclip bench` on a GPU or of the host bench measures 291 separate buffers",
        "-",
    );
}

#[test]
fn a_small_clip_and_scratch_have_bounds_for_one_plan() {
    let clip = |seconds| {
        with(row("2^18", 1, 1 << 18, "arena", "clip exceeded", seconds), "scratch_bytes", 66584.576 * 1.5)
    };
    assert_outcome(&[clip(24e-6)], "clip of 1 MiB", "24.0 µs (2^18 f32, clip exceeded)", "met");
    let scratch = "150.0 % (2^18 f32, clip exceeded, arena)";
    assert_outcome(&[clip(24e-6)], "scratch", scratch, "**missed** by 50.0 points, in 1 of 1");
    // Wall times do not count as GPU times.
    let none = "not measured: no line of `gradclip bench` on a GPU measures a clip of 2^18 f32";
    assert_outcome(&[with(clip(24e-6), "clock", "wall")], "clip of 1 MiB", none, "-");
}

/// Without lines every target is not measured, and none is met.
#[test]
fn without_lines_no_target_is_met() {
    for target in &TARGETS {
        let row = target.row(&SavedLines::default(), None);
        assert!(row[2].starts_with("not measured: no lines of "), "{row:?}");
        assert_eq!(row[3], "-");
    }
}

#[test]
fn an_invalid_line_is_an_error_that_names_file_and_line() {
    let mut lines = SavedLines::default();
    let zero = with(row("2^26", 1, 1 << 26, "arena", "norm", 1e-3), "seconds", 0.0);
    for (text, named) in [
        ("{\"kind\": \"ratios\"}\n\nno JSON\n".to_owned(), "lines.jsonl, line 3"),
        ("{\"set\": \"2^26\"}".to_owned(), "missing field `kind`"),
        ("{\"kind\": \"operation\", \"library\": \"gradclip\"}".to_owned(), "missing field `path`"),
        (zero.to_string(), "lines.jsonl, line 1: seconds is 0"),
    ] {
        let error = lines.add(Path::new("lines.jsonl"), &text).unwrap_err();
        assert!(format!("{error:#}").contains(named), "{error:#}");
    }
}
