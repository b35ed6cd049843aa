//! 16-bit gradients: odd lengths, subnormals, ties, and the ends of each range.

use gradclip::DType::{BF16, F16};
use gradclip::{Epsilon, NormType};

use super::{NARROW, long, options, row};
use crate::case::Case;
use crate::case::Method::{Norm, Tensor, Value};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in NARROW {
        for (suite, method) in [
            ("clipped", Norm(0.5)),
            ("within", Norm(1e3)),
            ("clamped", Value(0.3)),
            ("zeroed", Norm(0.0)),
            ("each", Tensor(0.25)),
        ] {
            for lens in [[1, 3, 7, 9, 0], [7, 1, 1, 1, 3], [4095, 4097, 9, 1, 3], [8, 4096, 16, 2, 65537]] {
                let lens: &'static [usize] = Vec::leak(lens.to_vec());
                let name = format!("narrow/{dtype:?}/{suite}/{lens:?}");
                cases.push(long(name, lens, method).all(dtype));
            }
        }
    }
    // The smallest subnormals of f16, and numbers on both sides of its smallest normal number.
    let subnormals: Vec<f32> = (0..40_u8).map(|n| f32::from(n) * (-24_f32).exp2()).collect();
    let edge: Vec<f32> = (1000..1050_u16).map(|n| -f32::from(n) * (-24_f32).exp2()).collect();
    // Half of each number is a tie.
    let ties: Vec<f32> = (2049..2100_u16).map(|n| f32::from(n - 1025) * (-20_f32).exp2()).collect();
    for max_norm in [1e-3, 0.4, 1e-7, 1e3] {
        let name = |content: &str| format!("narrow/{content}/{max_norm:e}");
        let subnormal = row(name("f16_subnormals"), &[&subnormals, &edge], Norm(max_norm * 1e-3));
        cases.push(subnormal.all(F16));
        cases.push(row(name("f16_becomes_subnormal"), &[&ties, &[1.0]], Norm(max_norm)).all(F16));
        let largest: &[&[f32]] = &[&[65504.0, -65504.0, 1.0], &[-0.0]];
        cases.push(row(name("f16_largest"), largest, Norm(max_norm)).all(F16));
        let huge: &[&[f32]] = &[&[3.3e38, -1e30], &[1e-40, 2.0]];
        cases.push(row(name("bf16_huge"), huge, Norm(max_norm)).all(BF16));
        let tiny: &[&[f32]] = &[&[1e-40, -3e-39], &[2e-38, 1e-39, 9.2e-41]];
        cases.push(row(name("bf16_tiny"), tiny, Norm(max_norm * 1e-38)).all(BF16));
    }
    // Multiplies every significand by 3/4. A quarter of the products are ties, which round in both directions.
    let quarters = options(Norm(1.5)).norm_type(NormType::Inf).epsilon(Epsilon::None);
    for (dtype, ulp) in [(F16, 1024_u16), (BF16, 128)] {
        let numbers: Vec<f32> = (ulp..=2 * ulp).map(|n| f32::from(n) / f32::from(ulp)).collect();
        let negative: Vec<f32> = numbers.iter().map(|g| -g).collect();
        let name = format!("narrow/{dtype:?}/three_quarters");
        cases.push(row(name, &[&numbers, &negative], quarters.clone()).all(dtype));
    }
    let scale = options(Norm(1e30)).loss_scale(2.0);
    cases.push(row("narrow/f16/ties", &[&subnormals, &edge, &ties], scale).all(F16));
    cases
}
