//! Gradients with rows, of odd lengths and longer than a tile, for every type and norm.

use gradclip::DType::{self, BF16, F16, F32};
use gradclip::NormType;

use crate::case::Method::{Agc, Norm, Rms, Tensor};
use crate::case::{Case, Expect, Options};
use crate::common::numbers::noise;
use crate::common::role::Role;

pub(crate) fn cases() -> Vec<Case> {
    let shapes = [(1, 1), (7, 3), (3, 4096), (2, 4099), (5, 0), (64, 16), (1, 9)];
    let methods = [("each", Tensor(0.5)), ("rms", Rms(0.1)), ("agc", Agc(0.1, 1e-3))];
    let mut cases = Vec::new();
    for dtype in [F32, F16, BF16] {
        for (kind, method) in methods {
            for norm_type in [NormType::L2, NormType::L1, NormType::Inf, NormType::P(3.0), NormType::P(0.0)] {
                if kind == "rms" && norm_type != NormType::L2 {
                    continue;
                }
                let options = Options::from(method).norm_type(norm_type);
                cases.push(shaped(format!("rows/{kind}/{dtype:?}/{norm_type:?}"), &shapes, dtype, options));
            }
        }
        // With a global norm, rows have no effect.
        let together = Options::from(Norm(0.5));
        cases.push(shaped(format!("rows/together/{dtype:?}"), &shapes, dtype, together));
    }
    cases
}

/// Creates a case from the shapes of random gradients, each with a parameter.
pub(crate) fn shaped(name: String, shapes: &[(usize, usize)], dtype: DType, options: Options) -> Case {
    let role = |(&(rows, len), seed)| Role::of(dtype).rows(rows).parameter(&noise(seed, rows * len));
    let roles: Vec<_> = shapes.iter().zip(500..).map(role).collect();
    let lens: Vec<_> = shapes.iter().map(|(rows, len)| rows * len).collect();
    let gradients = move || lens.iter().zip(600..).map(|(&len, seed)| noise(seed, len)).collect();
    Case::new(name, gradients, options, Expect::Definition).roles(&roles)
}
