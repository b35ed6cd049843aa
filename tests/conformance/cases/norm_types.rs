//! Every type of norm, for gradients of any length and magnitude.

use gradclip::NormType;

use super::{INF, NAN, NARROW, long, options, row};
use crate::case::Case;
use crate::case::Method::Norm;

pub(crate) fn cases() -> Vec<Case> {
    const POWERS: [f32; 12] = [0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 8.0, -0.5, -1.0, -2.0, -INF];
    const SMALL: [(&str, &[&[f32]]); 12] = [
        ("nothing", &[]),
        ("empty", &[&[], &[]]),
        ("empty_among_others", &[&[], &[3.0], &[], &[4.0, -12.0]]),
        ("zeros", &[&[0.0, -0.0], &[0.0]]),
        ("zero_among_others", &[&[3.0, 0.0], &[-4.0], &[0.0, -0.0]]),
        ("huge", &[&[1e30, -1e30], &[3e30]]),
        ("tiny", &[&[1e-40, -3e-40], &[2e-40]]),
        ("huge_and_tiny", &[&[1e30, 1e-40], &[-1e-40, 1e30]]),
        ("sum_beyond_f32", &[&[3e38, -3e38], &[1.0]]),
        ("infinity", &[&[1.0, -2.0], &[-INF, 2.0]]),
        ("nan", &[&[1.0, -2.0], &[2.0, NAN]]),
        ("nan_and_infinity", &[&[INF], &[NAN, 0.0]]),
    ];
    let named = [("l1", NormType::L1), ("inf", NormType::Inf), ("p_inf", NormType::P(INF))];
    let named = named.map(|(name, norm_type)| (name.to_owned(), norm_type));
    let powers = POWERS.map(|p| (format!("p_{p}"), NormType::P(p)));
    let mut cases = Vec::new();
    for (name, norm_type) in named.into_iter().chain(powers) {
        let half = options(Norm(0.5)).norm_type(norm_type);
        for (content, gradients) in SMALL {
            cases.push(row(format!("norm/{name}/{content}"), gradients, half.clone()));
        }
        let loud = options(Norm(1e35)).norm_type(norm_type);
        cases.push(row(format!("norm/{name}/huge_within"), &[&[1e30, -1e30], &[3e30]], loud));
        cases.push(long(format!("norm/{name}/long"), &[1, 0, 4097, 3, 65537], half.clone()));
        for dtype in NARROW {
            let name = format!("norm/{name}/{dtype:?}");
            cases.push(long(name, &[4097, 1, 7, 9, 3], half.clone()).all(dtype));
        }
    }
    cases
}
