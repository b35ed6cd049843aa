//! `gradclip clip --plot`.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::{assert_fails, clip, folder_with, one_tensor, with_tensors};

/// Clips tensors with `--plot` and returns the SVG.
fn plot(tensors: &[(&str, &[f32])], args: &[&str]) -> String {
    let (folder, file) = folder_with(&with_tensors(tensors));
    let svg = folder.path().join("plot.svg");
    let output = clip(&file, &[args, &["--plot", svg.to_str().unwrap()]].concat());
    assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
    let svg = fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    svg
}

/// Returns the texts of an SVG.
fn texts(svg: &str) -> Vec<&str> {
    let inner = |part| Some(str::split_once(str::split_once(part, '>')?.1, "</text>")?.0.trim());
    svg.split("<text").skip(1).filter_map(inner).collect()
}

fn count(svg: &str, what: &str) -> usize {
    svg.matches(what).count()
}

/// Returns the number in an attribute such as `width="700"`.
fn size(svg: &str, name: &str) -> u32 {
    let (_, rest) = svg.split_once(&format!(r#"{name}=""#)).unwrap();
    rest.split_once('"').unwrap().0.parse().unwrap()
}

#[test]
fn each_tensor_and_the_total_have_a_row() {
    let svg = plot(&[("a", &[3.0, 4.0]), ("b & <c>", &[0.125])], &["--max-norm", "1"]);
    let texts = texts(&svg);
    for text in ["a", "b &amp; &lt;c&gt;", "total norm", "before", "after", "limit", "0.1", "1", "10", "norm"]
    {
        assert!(texts.contains(&text), "no {text:?} in {texts:?}");
    }
    for absent in ["non-finite", "inf, NaN", "0", "(others)"] {
        assert!(!texts.contains(&absent), "{absent:?} in {texts:?}");
    }
    // Two marks per row, and two in the legend.
    assert_eq!(count(&svg, "<circle"), 2 * 3 + 2);
}

#[test]
fn zero_and_non_finite_norms_have_a_strip() {
    let tensors: [(&str, &[f32]); 4] =
        [("fine", &[3.0]), ("zero", &[0.0]), ("bad", &[f32::NAN]), ("inf", &[f32::INFINITY])];
    let svg = plot(&tensors, &["--max-norm", "1", "--per-tensor", "--nonfinite", "zero"]);
    let texts = texts(&svg);
    for text in ["0", "inf, NaN", "non-finite", "limit"] {
        assert!(texts.contains(&text), "no {text:?} in {texts:?}");
    }
    let only_bad = plot(&[("bad", &[f32::NAN])], &["--max-norm", "1"]);
    assert!(only_bad.contains("non-finite"), "{only_bad}");
    plot(&[("zero", &[0.0])], &["--value", "0"]);
    plot(&[("tiny", &[f32::from_bits(1)]), ("huge", &[f32::MAX, f32::MAX])], &["--max-norm", "inf"]);
}

#[test]
fn groups_are_coloured_and_named() {
    let tensors: [(&str, &[f32]); 3] = [("body.w", &[3.0]), ("head.w", &[5.0]), ("odd", &[1.0])];
    let svg = plot(&tensors, &["--max-norm", "1", "--groups", "body.*=2", "--groups", "head.*=2"]);
    let texts = texts(&svg);
    // Once in the legend and once as a row.
    for group in ["body.*", "head.*", "(others)"] {
        assert_eq!(texts.iter().filter(|text| **text == group).count(), 2, "{group} in {texts:?}");
    }
    for color in ["#0072B2", "#D55E00", "#787878"] {
        assert!(svg.contains(color), "no {color} in {svg}");
    }
}

#[test]
fn very_many_tensors_fit_on_a_page() {
    let names: Vec<String> = (0..2000).map(|index| format!("layer.{index}")).collect();
    let tensors: Vec<(&str, &[f32])> = names.iter().map(|name| (&**name, &[1.5_f32][..])).collect();
    let [few, many, most] = [10, 300, 2000].map(|len| plot(&tensors[..len], &["--max-norm", "1"]));
    let named = |svg: &str| texts(svg).iter().filter(|text| text.starts_with("layer.")).count();
    assert_eq!((named(&few), named(&many)), (10, 300));
    assert!((100..1000).contains(&named(&most)), "every {}th is named", 2000 / named(&most));
    assert!(size(&few, "height") < 600 && size(&most, "height") < 5000);
    let long = "x".repeat(1000);
    let wide = plot(&[(&long, &[1.0])], &["--max-norm", "1"]);
    assert!(size(&wide, "width") < 1400 && wide.contains('…'), "{wide}");
}

fn fails_at_once(file: &Path, plot: &Path, folder: &TempDir) -> String {
    let to = folder.path().join("out.safetensors");
    let args = ["--max-norm", "1", "-o", to.to_str().unwrap(), "--plot", plot.to_str().unwrap()];
    let message = assert_fails(&clip(file, &args), "plot");
    assert!(!to.exists(), "it should fail before anything is written");
    message
}

#[test]
fn a_plot_that_cannot_be_written_is_an_error_before_any_work() {
    let (folder, file) = folder_with(&one_tensor(&[3.0, 4.0]));
    let missing = folder.path().join("missing.safetensors");
    let svg = folder.path().join("folder.svg");
    fs::create_dir(&svg).unwrap();
    for plot in [folder.path().to_owned(), svg, file.clone(), folder.path().join("no folder/plot.svg")] {
        // The missing input shows that the plot is checked first.
        let message = fails_at_once(&missing, &plot, &folder);
        assert!(message.contains("cannot write"), "{message}");
    }
    let [misnamed, to] = ["grads.svg", "out.svg"].map(|name| folder.path().join(name));
    fs::copy(&file, &misnamed).unwrap();
    for (plot, to) in [(&misnamed, &to), (&folder.path().join("./grads.svg"), &to), (&to, &to)] {
        let args = ["--max-norm", "1", "-o", to.to_str().unwrap(), "--plot", plot.to_str().unwrap()];
        let message = assert_fails(&clip(&misnamed, &args), "plot");
        assert!(message.contains("already reads or writes this file"), "{message}");
    }
    assert_eq!(fs::read(&misnamed).unwrap(), fs::read(&file).unwrap());
    assert!(!to.exists());
}

/// The disk is full when the plot is written, after the report has been printed.
#[test]
#[cfg(unix)]
fn the_report_is_printed_even_if_the_plot_fails() {
    let names: Vec<String> = (0..200).map(|index| format!("layer.{index}")).collect();
    let tensors: Vec<(&str, &[f32])> = names.iter().map(|name| (&**name, &[1.5_f32][..])).collect();
    let (folder, file) = folder_with(&with_tensors(&tensors));
    let limited = r#"trap "" XFSZ; ulimit -f 8; exec "$@""#;
    let mut command = std::process::Command::new("sh");
    command.args([
        "-c",
        limited,
        "sh",
        env!("CARGO_BIN_EXE_gradclip"),
        "clip",
        "--device=cpu",
        "--max-norm=1",
    ]);
    let output = command.arg(&file).arg("--plot").arg(folder.path().join("plot.svg")).output().unwrap();
    let message = str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("plot.svg: "), "{message}");
    assert!(str::from_utf8(&output.stdout).unwrap().contains("total norm"), "{output:?}");
}
