//! Loss scales, with norms within the limit and above it.

use gradclip::DType::{BF16, F16, F32};
use gradclip::NormType;

use super::{INF, NAN, long, options, row};
use crate::case::Case;
use crate::case::Method::{Norm, Tensor};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for scale in [1.0, 1024.0, 3.0, 0.5, 65536.0, 1e-3, 1e30, 1e-30] {
        for dtype in [F32, F16, BF16] {
            for (suffix, method) in [("clipped", Norm(1e-3)), ("within", Norm(1e37)), ("each", Tensor(1e-3))]
            {
                let name = format!("loss_scale/{scale:e}/{dtype:?}/{suffix}");
                cases.push(long(name, &[4097, 0, 7, 3], options(method).loss_scale(scale)).all(dtype));
            }
        }
        let name = format!("loss_scale/{scale:e}/coefficient_only");
        let alone = options(Norm(0.5)).loss_scale(scale).coefficient_only();
        cases.push(long(name, &[100, 3], alone));
    }
    // Norms that exceed the limit only with the loss scale, or only without it.
    let lengths: &[&[f32]] = &[&[3.0, 0.0], &[-4.0]];
    for (scale, max_norm) in [(2.0, 2.6), (2.0, 2.4), (0.5, 9.9), (0.5, 10.1)] {
        let name = format!("loss_scale/{scale}/limit_{max_norm}");
        cases.push(row(name, lengths, options(Norm(max_norm)).loss_scale(scale)));
    }
    // The norm of p = 0 is a count, which has no scale.
    let count = options(Norm(1.0)).norm_type(NormType::P(0.0)).loss_scale(128.0);
    cases.push(row("loss_scale/count", &[&[128.0, 0.0], &[256.0], &[0.0]], count));
    // The norm exceeds f32 only with the loss scale, or only without it.
    let huge: &[&[f32]] = &[&[3e38, -3e38], &[1e38]];
    let unscale = options(Norm(1.0)).loss_scale(1024.0);
    cases.push(row("loss_scale/norm_returns_to_f32", huge, unscale.clone()));
    cases.push(row("loss_scale/norm_leaves_f32", &[&[1e38]], options(Norm(1.0)).loss_scale(1e-3)));
    cases.push(row("loss_scale/f16_to_infinity", &[&[60000.0, -40000.0, 3.0]], {
        options(Norm(1e9)).loss_scale(0.5)
    }));
    let f16 = row("loss_scale/beyond_f16", &[&[60000.0, -40000.0, 32752.0, 3.0]], {
        options(Norm(1e9)).loss_scale(0.5)
    });
    cases.push(f16.all(F16));
    for (kind, number) in [("nan", NAN), ("infinity", INF)] {
        cases.push(row(format!("loss_scale/{kind}"), &[&[1.0, 2.0], &[number, 3.0]], unscale.clone()));
    }
    cases
}
