//! Per-tensor clips, by norm or by root mean square.

use gradclip::{Error, NonFinite, NormType};

use super::{INF, NAN, long, options, row};
use crate::case::Method::{Rms, Tensor};
use crate::case::{Case, Expect};

pub(crate) fn cases() -> Vec<Case> {
    let contents: &[&[f32]] =
        &[&[3.0, -4.0], &[], &[0.3, 0.4], &[0.0, -0.0], &[1e30, 1e30, 1e30], &[1e-40], &[-12.0]];
    let odd: &[&[f32]] = &[&[3.0, -4.0], &[INF, 1.0], &[], &[NAN, 1.0], &[0.25]];
    let mut cases = Vec::new();
    for method in [Tensor(1.0), Tensor(0.0), Tensor(INF), Rms(0.5), Rms(0.0), Rms(1e38), Rms(INF)] {
        cases.push(row(format!("each/{method:?}"), contents, method));
        cases.push(row(format!("each/{method:?}/empty"), &[&[], &[]], method));
        let alone = options(method).coefficient_only();
        cases.push(row(format!("each/{method:?}/coefficient_only"), contents, alone));
        for policy in [NonFinite::Propagate, NonFinite::Skip, NonFinite::Zero, NonFinite::Poison] {
            let options = options(method).non_finite(policy);
            cases.push(row(format!("each/{method:?}/{policy:?}"), odd, options));
        }
        let options = options(method).loss_scale(4.0);
        cases.push(long(format!("each/{method:?}/long"), &[4097, 1, 0, 9000, 33], options));
    }
    for norm_type in [NormType::L1, NormType::Inf, NormType::P(0.0), NormType::P(0.5), NormType::P(-2.0)] {
        let options = options(Tensor(1.0)).norm_type(norm_type);
        cases.push(row(format!("each/{norm_type:?}"), contents, options));
    }
    let error = Error::NonFinite { gradient: Some(1.into()), total_norm: INF, record: Some(1) };
    let options = options(Tensor(1.0)).non_finite(NonFinite::Error);
    // The first gradient is within its limit, and must stay unchanged too.
    let within: &[&[f32]] = &[&[0.25], &[INF, 1.0], &[NAN]];
    cases.push(Case::of("each/error", within, options, Expect::Error(error)));
    cases
}
