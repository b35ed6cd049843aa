//! Every combination of a norm, a policy, a loss scale and a scope.

use gradclip::DType::F32;
use gradclip::{NonFinite, NormType};

use super::{INF, NAN, row};
use crate::case::Method::{Norm, Tensor};
use crate::case::{Case, Method, Options};
use crate::common::role::Role;

/// Policies and loss scales apply to the elements even if the norm is unaffected, as for p = 0.
pub(crate) fn cases() -> Vec<Case> {
    use NonFinite::{Poison, Propagate, Skip, Zero};
    const CONTENTS: [(&str, &[&[f32]]); 6] = [
        ("finite", &[&[128.0, -64.0], &[], &[256.0]]),
        ("zeros", &[&[128.0, 0.0], &[0.0, -0.0], &[256.0]]),
        ("nan", &[&[128.0, NAN], &[0.0], &[256.0]]),
        ("infinity", &[&[128.0, 1.0], &[-INF, 2.0], &[0.0]]),
        ("only_infinity", &[&[INF], &[-INF], &[]]),
        ("huge", &[&[3e38, -3e38], &[3e38, 1.0], &[2e38]]),
    ];
    let norms = [NormType::L1, NormType::L2, NormType::Inf].into_iter();
    let powers = [0.0, 0.5, 3.0, -1.0, -INF].map(NormType::P);
    let mut cases = Vec::new();
    for norm_type in norms.chain(powers) {
        for (content, gradients) in CONTENTS {
            for policy in [Propagate, Skip, Zero, Poison] {
                let name = |kind: &str| format!("options/{norm_type:?}/{content}/{policy:?}/{kind}");
                let to = |options: Options| options.norm_type(norm_type).non_finite(policy).loss_scale(128.0);
                let f32 = Role::of(F32);
                cases.push(row(name("together"), gradients, to(Norm(0.5).into())));
                cases.push(row(name("each"), gradients, to(Tensor(0.5).into())));
                let groups = to(Options::groups(&[Norm(0.5), Norm(0.25)]));
                let roles = [f32, f32.group(1), f32.unscaled()];
                cases.push(row(name("groups"), gradients, groups).roles(&roles));
                let agc = to(Method::Agc(0.1, 1e-3).into());
                let parameters: Vec<_> = gradients.iter().map(|own| f32.parameter(own)).collect();
                cases.push(row(name("agc"), gradients, agc).roles(&parameters));
            }
        }
    }
    cases
}
