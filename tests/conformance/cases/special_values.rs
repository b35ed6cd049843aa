//! Zeros, subnormals, infinities, NaNs, and numbers at the ends of the range of f32.

use super::{INF, NAN};
use crate::case::Method::Norm;
use crate::case::{Case, Expect, Peer};
use crate::common::numbers::noise;

pub(crate) fn cases() -> Vec<Case> {
    const MAX: f32 = f32::MAX;
    let signalling = f32::from_bits(0xff80_0001);
    let zeroed = |total_norm, len| {
        Expect::Better(Peer { total_norm: Some(total_norm), clipped: vec![vec![0.0; len]] })
    };
    let ours = |name: &str, gradients: &[&[f32]], max_norm: f32| {
        Case::of(format!("special/{name}"), gradients, Norm(max_norm), Expect::Definition)
    };
    let mut cases = vec![
        ours("nothing", &[], 1.0),
        ours("nothing_to_zero", &[], 0.0),
        ours("empty", &[&[], &[]], 1.0),
        ours("empty_among_others", &[&[], &[3.0], &[], &[4.0, 0.0], &[]], 1.0),
        ours("zeros", &[&[0.0, -0.0], &[-0.0]], 1.0),
        ours("signed_zeros_scaled", &[&[0.0, -0.0, 2.0]], 1.0),
        ours("subnormal", &[&[1e-45]], 1.0),
        ours("nine_subnormals", &[&[1e-45; 9]], 1.0),
        ours("subnormal_rounded_up", &[&[f32::from_bits(2); 2]], 1.0),
        ours(
            "subnormal_rounded_to_even",
            &[&[f32::from_bits(3), f32::from_bits(4)], &[f32::from_bits(6)]],
            1.0,
        ),
        ours("subnormal_coefficient", &[&[1e10, 1e-10]], 1e-30),
        ours("subnormal_limit", &[&[3.0, 4.0]], 1e-40),
        ours("subnormal_norm_and_limit", &[&[3e-40, 4e-40]], 1e-40),
        ours("norm_of_3e38", &[&[3e38]], 1.0),
        ours("norm_just_within_f32", &[&[2.3e38, 2.3e38]], 1.0),
        ours("norm_beyond_f32", &[&[MAX, -MAX], &[0.0, 1.0]], 1.0),
        ours("norm_beyond_f32_to_zero", &[&[MAX, -MAX], &[0.0, 1.0]], 0.0),
        ours("infinity", &[&[1.0, -INF, -2.0]], 1.0),
        ours("infinity_to_zero", &[&[1.0, INF, -2.0]], 0.0),
        ours("infinity_to_negative_zero", &[&[1.0, INF, -2.0]], -0.0),
        ours("infinity_without_limit", &[&[1.0, INF, -2.0]], INF),
        ours("nan_without_limit", &[&[1.0, NAN, -2.0]], INF),
        ours("nan_to_zero", &[&[1.0, NAN, -2.0]], 0.0),
        ours("nan_and_infinity", &[&[1.0, INF], &[-NAN]], 1.0),
        ours("infinity_and_nan", &[&[1.0, NAN], &[-INF]], 1.0),
        ours("signalling_nan", &[&[1.0], &[signalling, 2.0, 3.0]], 1.0),
        Case::of("special/1e20", &[&[1e20, 1e20]], Norm(1.0), zeroed(INF, 2)),
        Case::of("special/1e-30", &[&[1e-30, 1e-30]], Norm(1.0), zeroed(0.0, 2)),
    ];
    for (name, number) in [("nan", NAN), ("infinity", INF)] {
        let far_back = move || vec![noise(4, 300), [noise(5, 4096), vec![number]].concat(), noise(6, 300)];
        let name = format!("special/{name}_at_the_end");
        cases.push(Case::new(name, far_back, Norm(1.0), Expect::Definition));
    }
    cases
}
