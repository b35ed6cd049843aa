//! Groups with separate limits, and gradients that are only measured or only scaled.

use gradclip::DType::{BF16, F16, F32};
use gradclip::{NonFinite, NormType};

use super::{INF, NAN, long, row};
use crate::case::Method::{Norm, Range, Rms, Tensor, Value};
use crate::case::{Case, Method, Options};
use crate::common::role::Role;

pub(crate) fn cases() -> Vec<Case> {
    let f32 = Role::of(F32);
    let lens: &[usize] = &[5, 4097, 3, 0, 77, 1, 9, 300];
    let some = |name: &str, methods: &[Method], roles: &[Role]| {
        long(format!("group/{name}"), lens, Options::groups(methods)).roles(roles)
    };
    let two = [f32, f32.group(1)];
    let narrow =
        [Role::of(F16).group(1), Role::of(BF16), Role::of(F16), f32.group(2), Role::of(BF16).group(2)];
    let only = [f32.unmeasured(), f32, f32.unscaled()];
    let alone = [f32.unmeasured().unscaled(), Role::of(F16).unscaled(), Role::of(F16).unmeasured()];
    let all = [
        f32.unmeasured(),
        Role::of(F16).group(1).unscaled(),
        Role::of(F16),
        Role::of(BF16).group(1),
        f32.group(1).unmeasured(),
        f32.unscaled(),
        Role::of(BF16).group(2).unscaled(),
        Role::of(F16).group(2).unmeasured(),
    ];
    let mut cases = vec![
        some("two", &[Norm(0.5), Norm(1.0)], &two),
        some("two_one_within", &[Norm(1e3), Norm(0.5)], &two),
        some("two_own_limits", &[Tensor(0.5), Tensor(0.25)], &two),
        some("two_rms", &[Rms(0.1), Rms(0.2)], &two),
        some("two_clamps", &[Value(0.5), Range(-0.25, 0.1)], &two),
        some("of_which_one_is_empty", &[Norm(0.5), Norm(1.0), Norm(2.0)], &two),
        some("three_narrow", &[Norm(0.5), Norm(0.1), Norm(1e3)], &narrow),
        some("three_narrow_clamps", &[Value(0.5), Value(0.1), Value(1e3)], &narrow),
        some("measured_or_scaled", &[Norm(0.5)], &only),
        some("neither", &[Norm(0.5)], &alone),
        some("clamp_unscaled", &[Value(0.1)], &alone),
        some("own_norm_unmeasured", &[Tensor(0.1)], &only),
        some("rms_unmeasured", &[Rms(0.1)], &only),
        some("none_measured", &[Norm(0.5)], &[f32.unmeasured()]),
        some("none_scaled", &[Norm(0.5)], &[f32.unscaled()]),
        some("all", &[Norm(0.5), Norm(0.25), Norm(0.01)], &all),
        some("all_clamps", &[Value(0.5), Value(0.25), Value(0.01)], &all),
        some("all_own", &[Tensor(0.5), Tensor(0.25), Tensor(0.01)], &all),
    ];
    let unscale = |methods: &[Method]| Options::groups(methods).loss_scale(3.0);
    for (name, methods) in [("global", [Norm(0.5); 3]), ("own", [Tensor(0.5); 3]), ("rms", [Rms(0.01); 3])] {
        cases.push(long(format!("group/loss_scale/{name}"), lens, unscale(&methods)).roles(&all));
    }
    for norm_type in [NormType::L1, NormType::Inf, NormType::P(0.0), NormType::P(3.0), NormType::P(-1.0)] {
        let options = Options::groups(&[Norm(0.5), Norm(0.25), Norm(0.01)]).norm_type(norm_type);
        cases.push(long(format!("group/{norm_type:?}"), lens, options).roles(&all));
    }
    // A non-finite gradient affects only its group.
    let odd: &[&[f32]] = &[&[3.0, 4.0], &[1.0], &[NAN, 1.0], &[INF], &[0.5], &[2.0]];
    for policy in [NonFinite::Propagate, NonFinite::Skip, NonFinite::Zero, NonFinite::Poison] {
        let roles = [f32, f32.group(1), f32.group(1), f32.group(2), f32.group(2), f32];
        let options = Options::groups(&[Norm(1.0), Norm(0.5), Norm(0.25)]).non_finite(policy);
        cases.push(row(format!("group/{policy:?}"), odd, options).roles(&roles));
    }
    cases
}
