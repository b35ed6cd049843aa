//! Norms and factors beyond the range of f32, which their records hold as a significand and an exponent.

use gradclip::DType::{BF16, F16, F32};
use gradclip::{Epsilon, NonFinite, NormType};

use super::{options, row};
use crate::case::Method::{Norm, Tensor};
use crate::case::{Case, Expect, Options};
use crate::common::role::Role;

pub(crate) fn cases() -> Vec<Case> {
    let huge: &[&[f32]] = &[&[3e38, -3e38, 1.0], &[], &[3e38, 1e30, -0.0, 3e38]];
    let norms = [NormType::L2, NormType::L1, NormType::Inf, NormType::P(3.0), NormType::P(0.5)];
    let limits = [1e38, 1.0, 1e-2, 1e-10, 1e-37, 1e-40, 1e-45, 0.0];
    let mut cases = Vec::new();
    for norm_type in norms {
        for limit in limits {
            let name = |kind: &str| format!("beyond_f32/{norm_type:?}/{limit:e}/{kind}");
            let to = |method| options(method).norm_type(norm_type);
            cases.push(row(name("together"), huge, to(Norm(limit))));
            cases.push(row(name("each"), huge, to(Tensor(limit))));
            cases.push(row(name("bf16"), huge, to(Norm(limit))).all(BF16));
            let skip = to(Norm(limit)).non_finite(NonFinite::Skip).epsilon(Epsilon::None);
            cases.push(row(name("skip"), huge, skip));
        }
    }
    for scale in [128.0, 0.25, 1e-3, 1e37, 1e-37] {
        for limit in [1.0, 1e-30] {
            let name = |kind: &str| format!("beyond_f32/scale_{scale:e}/{limit:e}/{kind}");
            let scaled = options(Norm(limit)).loss_scale(scale);
            cases.push(row(name("f32"), huge, scaled.clone()));
            let halves: &[&[f32]] = &[&[60000.0, -1.0, 6e-8], &[3e38, 2.0], &[3e38; 3]];
            let types = [F16, BF16, F32].map(Role::of);
            cases.push(row(name("mixed"), halves, scaled.clone()).roles(&types));
            cases.push(row(name("f16"), &halves[..1], scaled.clone()).all(F16));
            cases.push(row(name("coefficient"), huge, scaled.coefficient_only()));
        }
    }
    // The sum of norm and epsilon exceeds f32, or the epsilon dominates it.
    for epsilon in [3e38, 1e30] {
        let loud = options(Norm(1.0)).epsilon(Epsilon::Value(epsilon));
        cases.push(row(format!("beyond_f32/epsilon_{epsilon:e}"), &[&[2e38, 1e38]], loud.clone()));
        cases.push(row(format!("beyond_f32/epsilon_{epsilon:e}/huge"), huge, loud));
    }
    // Whole vectors, tiles and edges; and two groups, one of which is ordinary.
    let long = || vec![vec![3e38; 4099], vec![1.0; 5], vec![-3e38; 8192]];
    for dtype in [F32, BF16] {
        cases.push(
            Case::new(format!("beyond_f32/long/{dtype:?}"), long, Norm(1.0), Expect::Definition).all(dtype),
        );
    }
    let groups = Options::groups(&[Norm(1.0), Norm(1.0)]);
    let roles = [Role::of(F32), Role::of(F32).group(1), Role::of(F32).unmeasured()];
    cases.push(Case::new("beyond_f32/groups", long, groups, Expect::Definition).roles(&roles));
    cases
}
