//! Clips by value: every special number, and every kind of bound.

use super::{INF, NAN, NARROW, row};
use crate::case::Method::{Range, Value};
use crate::case::{Case, Expect, Method};

pub(crate) fn cases() -> Vec<Case> {
    [f32_ranges(), narrow_ranges()].into_iter().flatten().collect()
}

/// Special numbers, clamped to special ranges.
fn f32_ranges() -> Vec<Case> {
    let numbers = [
        f32::NAN,
        -f32::NAN,
        INF,
        -INF,
        f32::MAX,
        f32::MIN,
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        1e-40,
        -1e-40,
        f32::MIN_POSITIVE,
        -f32::MIN_POSITIVE,
        1.0,
        -1.0,
        1.0_f32.next_up(),
        -1.0_f32.next_up(),
        2.5,
        -2.5,
        1e30,
    ];
    let ranges = [
        Range(-1.0, 1.0),
        Range(-INF, 1.0),
        Range(-1.0, INF),
        Range(-INF, INF),
        Range(-INF, -INF),
        Range(INF, INF),
        Range(0.0, 0.0),
        Range(-0.0, -0.0),
        Range(-0.0, 0.0),
        Range(0.0, -0.0),
        Range(0.0, 1.0),
        Range(1.0, 2.0),
        Range(-2.0, -1.0),
        Range(-1e-40, 1e-45),
        Range(1e-45, 1e-40),
        Range(f32::MIN, f32::MAX),
        Value(0.0),
        Value(1e-40),
        Value(INF),
    ];
    // A case from TensorFlow. In the other cases the gradients do not fill whole vectors.
    let tensorflow = Case::of("tensorflow/value", &[&[f32::NAN, INF, -INF]], Value(4.0), Expect::Definition);
    let clamp = |method: Method| {
        Case::of(format!("range/{method:?}"), &[&numbers, &numbers], method, Expect::Definition)
    };
    ranges.into_iter().map(clamp).chain([tensorflow]).collect()
}

/// Bounds that a 16-bit type cannot represent, and numbers on both sides of the rounded bounds.
fn narrow_ranges() -> Vec<Case> {
    let numbers = [
        NAN,
        INF,
        -INF,
        65504.0,
        -65504.0,
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.1,
        -0.1,
        0.099_975_586,
        0.100_036_62,
        6e-8,
        -6e-8,
        6.1e-5,
        1e38,
        3e38,
        1e-40,
        70000.0,
    ];
    let ranges = [
        Value(0.0),
        Value(0.1),
        Value(1e-3),
        Value(1.000_5),
        // Half of the smallest f16 subnormal, slightly more, and slightly less.
        Value(2.980_232_2e-8),
        Value(2.980_233e-8),
        Value(1e-9),
        Value(65504.0),
        // The first number that would round to infinity, and others beyond f16 or bf16.
        Value(65520.0),
        Value(70000.0),
        Value(3.4e38),
        Value(f32::MAX),
        Value(INF),
        Range(70000.0, 80000.0),
        Range(-1e30, -1e20),
        Range(-1e-9, 1e-9),
        Range(1e-9, 2e-9),
        Range(0.099_98, 0.1),
        Range(-INF, 0.3),
        Range(INF, INF),
    ];
    let mut cases = Vec::new();
    for range in ranges {
        for dtype in NARROW {
            let name = format!("narrow/{dtype:?}/clamp/{range:?}");
            cases.push(row(name, &[&numbers, &numbers[1..]], range).all(dtype));
        }
    }
    cases
}
