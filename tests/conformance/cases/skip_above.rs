//! A second limit, above which a step is skipped.

use gradclip::DType::{BF16, F16, F32};
use gradclip::{NonFinite, NormType};

use super::{INF, NAN, long, options, row};
use crate::case::Case;
use crate::case::Method::{Norm, Tensor};
use crate::case::Options;
use crate::common::role::Role;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let lengths: &[&[f32]] = &[&[3.0, 0.0], &[-4.0]];
    for (name, limit) in [("above", 4.9), ("at_the_norm", 5.0), ("below", 5.1), ("zero", 0.0), ("none", INF)]
    {
        cases.push(row(format!("skip_above/{name}"), lengths, options(Norm(1.0)).skip_above(limit)));
        let within = options(Norm(9.0)).skip_above(limit);
        cases.push(row(format!("skip_above/{name}/within_the_first_limit"), lengths, within));
        let scaled = options(Norm(1.0)).skip_above(limit).loss_scale(2.0);
        cases.push(row(format!("skip_above/{name}/loss_scale"), &[&[6.0, 0.0], &[-8.0]], scaled));
        cases.push(row(format!("skip_above/{name}/each"), lengths, options(Tensor(1.0)).skip_above(limit)));
    }
    for dtype in [F32, F16, BF16] {
        for (name, limit) in [("skipped", 1.0), ("clipped", 1e6)] {
            let clip = options(Norm(1e-3)).skip_above(limit);
            cases.push(long(format!("skip_above/{dtype:?}/{name}"), &[4097, 0, 7, 3], clip).all(dtype));
        }
    }
    for norm_type in [NormType::L1, NormType::Inf, NormType::P(3.0), NormType::P(0.0)] {
        let clip = options(Norm(1.0)).norm_type(norm_type).skip_above(4.5);
        cases.push(row(format!("skip_above/{norm_type:?}"), lengths, clip));
    }
    // Only a finite norm is compared; the policy decides about the others.
    for policy in [NonFinite::Propagate, NonFinite::Skip, NonFinite::Zero, NonFinite::Poison] {
        for (name, number) in [("nan", NAN), ("infinity", INF)] {
            let clip = options(Norm(1.0)).skip_above(2.0).non_finite(policy);
            cases.push(row(format!("skip_above/{name}/{policy:?}"), &[&[1.0, number], &[9.0]], clip));
        }
    }
    let beyond_f32: &[&[f32]] = &[&[3e38; 4]];
    cases.push(row("skip_above/beyond_f32", beyond_f32, options(Norm(1.0)).skip_above(3e38)));
    cases.push(row("skip_above/subnormal", &[&[1e-40]], options(Norm(1.0)).skip_above(2e-41)));
    let groups = Options::groups(&[Norm(1.0), Norm(2.0)]).skip_above(4.0);
    let roles = [Role::of(F32), Role::of(F32).group(1)];
    cases.push(row("skip_above/groups", &[&[3.0, 0.0], &[-5.0]], groups).roles(&roles));
    cases
}
