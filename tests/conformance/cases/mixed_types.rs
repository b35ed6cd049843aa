//! Gradients of all types in one plan.

use gradclip::DType::{BF16, F16, F32};
use gradclip::NormType;

use super::{long, options, row};
use crate::case::Case;
use crate::case::Method::{Norm, Tensor, Value};
use crate::common::role::Role;

pub(crate) fn cases() -> Vec<Case> {
    let types = [F32, F16, BF16].map(Role::of);
    let halves = [F16, BF16, F16, F32].map(Role::of);
    let mut cases = Vec::new();
    for (suite, options) in [
        ("clipped", options(Norm(0.5))),
        ("within", options(Norm(1e3))),
        ("l1", options(Norm(0.5)).norm_type(NormType::L1)),
        ("inf", options(Norm(0.5)).norm_type(NormType::Inf)),
        ("clamped", options(Value(0.3))),
        ("each", options(Tensor(0.5))),
        ("unscaled", options(Norm(0.5)).loss_scale(1024.0)),
    ] {
        for (order, roles) in [("f32_first", &types[..]), ("f16_first", &halves[..])] {
            let name = format!("mixed/{suite}/{order}");
            cases.push(long(name, &[3, 7, 9, 4097, 1, 1, 1, 0, 300, 8193, 5], options.clone()).roles(roles));
        }
        let name = format!("mixed/{suite}/extreme");
        let extreme: &[&[f32]] = &[&[1e30, -1e-40], &[65504.0, 6e-8], &[1e38, 1e-38, 0.0]];
        cases.push(row(name, extreme, options).roles(&types));
    }
    cases
}
