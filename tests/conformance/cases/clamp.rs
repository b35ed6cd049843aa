//! Clips by value: every special number, and every kind of bound.

use gradclip::DType::{BF16, F16, F32};

use super::{INF, NAN, NARROW, long, options, row};
use crate::case::Method::{Range, Value};
use crate::case::{Case, Expect, Method, Options};
use crate::common::role::Role;

pub(crate) fn cases() -> Vec<Case> {
    [f32_ranges(), narrow_ranges(), unscaled()].into_iter().flatten().collect()
}

/// Clips by value of gradients with a loss scale: special numbers, and gradients of whole vectors with and without edges.
fn unscaled() -> Vec<Case> {
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
        -3e-38,
        6e-8,
        -6e-8,
        -1e-7,
        6.1e-5,
        0.1,
        -0.1,
        1.0,
        -1.0,
        3.0,
        1000.0,
        -1024.0,
        1025.0,
        65504.0,
        -65504.0,
        1e30,
        -1e37,
    ];
    // The inverse of the last one is subnormal.
    let scales = [1.0, 3.0, 65536.0, 1e-3, 1e30, 3e-38, 2e38];
    let ranges = [
        Value(1.0),
        Value(1e-40),
        Value(65520.0),
        Value(INF),
        Range(0.0, 1.0),
        Range(-0.0, 0.0),
        Range(-INF, 0.5),
        Range(1e-9, 2e-9),
        Range(INF, INF),
    ];
    let mut cases = Vec::new();
    for dtype in [F32, F16, BF16] {
        for scale in scales {
            for range in ranges {
                let name = format!("unscale/{dtype:?}/{scale:e}/{range:?}");
                let gradients: &[&[f32]] = &[&numbers, &numbers[1..], &numbers[..16]];
                cases.push(row(name, gradients, options(range).loss_scale(scale)).all(dtype));
            }
        }
        // Whole blocks of vectors, and a tail.
        for (lens, scale) in [(&[20_000, 4097, 0, 7, 3][..], 8.0), (&[66_000, 1], 0.25), (&[9000, 5], 2e38)] {
            let name = format!("unscale/{dtype:?}/long/{scale:e}");
            cases.push(long(name, lens, options(Value(0.1)).loss_scale(scale)).all(dtype));
        }
    }
    let groups = [Value(0.5), Range(-INF, 0.25), Range(-0.0, 2.0)];
    let roles = [
        Role::of(F32),
        Role::of(BF16).group(1),
        Role::of(F16).group(2),
        Role::of(F32).group(1).unscaled(),
        Role::of(F16).unmeasured(),
        Role::of(F32).group(2),
    ];
    for scale in [4.0, 3.0, 1e-3, 2e38] {
        let options = Options::groups(&groups).loss_scale(scale);
        let name = format!("unscale/groups/{scale:e}");
        cases.push(long(name, &[5000, 33, 1025, 8, 70, 300], options).roles(&roles));
    }
    // PyTorch: an infinite gradient becomes the bound, a NaN stays NaN.
    let halves: &[&[f32]] = &[&[INF, -INF, NAN, 60000.0, -3.0, 0.5]];
    cases.push(row("unscale/f16/beyond_f16", halves, options(Value(1e9)).loss_scale(0.5)).all(F16));
    cases
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
