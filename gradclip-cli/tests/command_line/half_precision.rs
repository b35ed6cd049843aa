//! Files of F16 and BF16, and of mixed dtypes.

use std::fs;

use half::{bf16, f16};
use serde_json::json;

use crate::{bytes, clip, clip_bytes, folder_with, with_types};

fn f16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()
}

fn bf16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()
}

const H: [f32; 7] = [0.3, -1.7, 5.0, 1e-4, -6e-8, 100.5, 0.0];
const B: [f32; 5] = [3.3, -0.007, 250.0, 1e-30, -0.0];
const W: [f32; 3] = [2.0, -3.3, 1e-6];

/// Returns a file of mixed dtypes. Odd lengths leave the following tensors unaligned.
pub(crate) fn mixed() -> Vec<u8> {
    let tensors = [
        ("half", "F16", 2, f16s(&H)),
        ("w1", "F32", 4, bytes(&W)),
        ("brain", "BF16", 2, bf16s(&B)),
        ("w2", "F32", 4, bytes(&W[..1])),
        ("h2", "F16", 2, f16s(&H[..1])),
    ];
    with_types(&tensors)
}

fn bits(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes(pair.try_into().unwrap())).collect()
}

/// Asserts that `bits` is `exact` rounded to nearest, ties to even. Neighbours of the same sign have adjacent bits.
fn assert_nearest(bits: u16, exact: f32, widen: fn(u16) -> f32) {
    let distance = |bits: u16| (f64::from(widen(bits)) - f64::from(exact)).abs();
    let sign = |bits: u16| bits >> 15;
    assert_eq!(widen(bits).is_sign_negative(), exact.is_sign_negative(), "{exact}");
    for neighbour in
        [bits.wrapping_add(1), bits.wrapping_sub(1)].into_iter().filter(|n| sign(*n) == sign(bits))
    {
        let (error, other) = (distance(bits), distance(neighbour));
        let is_nearest = error < other || error == other && bits.is_multiple_of(2);
        assert!(is_nearest, "{exact} became {}, not {}", widen(bits), widen(neighbour));
    }
}

#[test]
fn half_precision_is_rounded_to_nearest() {
    let (report, out) = clip_bytes(&mixed(), &["--max-norm", "1"]);
    #[expect(clippy::cast_possible_truncation, reason = "it is an f32")]
    let coef = report["clip_coef"].as_f64().unwrap() as f32;
    assert!(coef < 0.01, "{coef}");
    let widen: [fn(u16) -> f32; 2] =
        [|bits| f16::from_bits(bits).to_f32(), |bits| bf16::from_bits(bits).to_f32()];

    let data = &out[out.len() - 14 - 12 - 10 - 4 - 2..];
    let rows =
        [(0..14, f16s(&H), widen[0]), (26..36, bf16s(&B), widen[1]), (40..42, f16s(&H[..1]), widen[0])];
    for (range, before, widen) in rows {
        for (after, before) in bits(&data[range]).into_iter().zip(bits(&before)) {
            assert_nearest(after, widen(before) * coef, widen);
        }
    }
    let scaled = W.map(|value| value * coef);
    assert_eq!(data[14..26], bytes(&scaled));
    assert_eq!(data[36..40], bytes(&scaled[..1]));
    assert_eq!(out[..out.len() - data.len()], mixed()[..out.len() - data.len()], "the header is kept");

    let types: Vec<_> = report["tensors"].as_array().unwrap().iter().map(|row| &row["dtype"]).collect();
    assert_eq!(types, ["F16", "F32", "BF16", "F32", "F16"]);
    let all =
        H.iter().map(|&x| f16::from_f32(x).to_f64()).chain(B.iter().map(|&x| bf16::from_f32(x).to_f64()));
    let all = all.chain(W.map(f64::from)).chain([f64::from(W[0]), f16::from_f32(H[0]).to_f64()]);
    let norm = all.map(|x| x * x).sum::<f64>().sqrt();
    crate::assert_near(&report["total_norm"], norm, 1.01);
}

#[test]
fn by_value_the_bound_is_rounded_to_the_dtype() {
    let (report, out) = clip_bytes(
        &with_types(&[("h", "F16", 2, f16s(&[0.5, -0.5, 0.01])), ("b", "BF16", 2, bf16s(&[7.0]))]),
        &["--value", "0.1"],
    );
    let data = &out[out.len() - 8..];
    // 0.1 is 0x2e66 as f16, and 0x3dcd as bf16.
    assert_eq!(bits(data), [0x2e66, 0xae66, f16::from_f32(0.01).to_bits(), 0x3dcd]);
    let b = json!({
        "name": "b", "dtype": "BF16", "shape": [1], "norm": 7.0,
        "max_magnitude": 7.0, "non_finite": 0, "zeros": 0
    });
    assert_eq!(report["tensors"][1], b);
}

#[test]
fn every_bit_pattern_is_copied_unchanged() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for dtype in ["F16", "BF16"] {
        let input = with_types(&[("first", dtype, 2, all[2..].to_vec()), ("w", "F32", 4, bytes(&W))]);
        assert_eq!(clip_bytes(&input, &["--max-norm", "1", "--nonfinite", "skip"]).1, input, "{dtype}");
    }
}

#[test]
fn the_table_counts_non_finite_elements() {
    let values = [1.0, f32::INFINITY, f32::NAN, -2.0];
    let (_folder, file) =
        folder_with(&with_types(&[("h", "F16", 2, f16s(&values)), ("b", "BF16", 2, bf16s(&[3.0]))]));
    let before = fs::read(&file).unwrap();
    let table = String::from_utf8(clip(&file, &["--max-norm", "1"]).stdout).unwrap();
    let words: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["tensor", "dtype", "shape", "norm", "non-finite"]);
    assert_eq!(words[1..3], [["h", "F16", "[4]", "NaN", "2"], ["b", "BF16", "[1]", "3", "-"]]);
    assert_eq!(fs::read(&file).unwrap(), before);
}
