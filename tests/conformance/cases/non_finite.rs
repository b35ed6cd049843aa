//! Every policy for non-finite gradients.

use gradclip::DType::{BF16, F16, F32};
use gradclip::{Error, NonFinite, NormType};

use super::{INF, NAN, options, row};
use crate::case::Method::Norm;
use crate::case::{Case, Expect, Options};
use crate::common::role::Role;

/// The third gradient is non-finite or huge, or all are ordinary.
pub(crate) fn cases() -> Vec<Case> {
    use NonFinite::{Poison, Propagate, Skip, Zero};
    // In `overflow` the elements are finite, but their norm exceeds f32. No policy applies.
    const KINDS: [(&str, f32); 5] =
        [("nan", NAN), ("infinity", -INF), ("overflow", 3.3e38), ("clipped", 3.0), ("within", 0.25)];
    let mut cases = Vec::new();
    for (kind, number) in KINDS {
        let contents: [&[f32]; 4] = [&[0.5, -0.25], &[], &[number, 0.125, -0.0, number], &[number; 3]];
        for dtype in [F32, F16, BF16] {
            // In f16 the element is infinite.
            if dtype == F16 && kind == "overflow" {
                continue;
            }
            for norm_type in [NormType::L2, NormType::L1, NormType::P(0.0), NormType::P(3.0)] {
                for scale in [None, Some(4.0)] {
                    let name = format!("policy/{kind}/{dtype:?}/{norm_type:?}/{scale:?}");
                    let options = Options { loss_scale: scale, ..options(Norm(2.5)).norm_type(norm_type) };
                    for policy in [Propagate, Skip, Zero, Poison] {
                        let options = options.clone().non_finite(policy);
                        cases.push(row(format!("{name}/{policy:?}"), &contents, options).all(dtype));
                    }
                    let total_norm = match (kind, norm_type) {
                        (_, NormType::P(0.0)) => 3.0,
                        ("nan", _) => NAN,
                        _ => INF,
                    };
                    let expect = match kind {
                        "nan" | "infinity" => Expect::Error(Error::NonFinite {
                            gradient: Some(2.into()),
                            total_norm,
                            record: None,
                        }),
                        _ => Expect::Definition,
                    };
                    let options = options.non_finite(NonFinite::Error);
                    cases.push(Case::of(format!("{name}/Error"), &contents, options, expect).all(dtype));
                }
            }
        }
    }
    // The first non-finite gradient of many, at different positions in the tree of partials.
    for first in [0_usize, 1, 255, 256, 300, 512, 600, 699] {
        let gradients = move || {
            let number = |index| if index < first { 0.5 } else { [NAN, 2.0, INF][(index - first) % 3] };
            (0..700).map(|index| vec![number(index)]).collect()
        };
        for norm_type in [NormType::L2, NormType::P(3.0)] {
            let options = options(Norm(1.0)).norm_type(norm_type).non_finite(Skip);
            let name = format!("policy/first_of_many/{first}/{norm_type:?}");
            cases.push(Case::new(name, gradients, options, Expect::Definition));
        }
    }
    // No policy applies to an unmeasured gradient.
    for policy in [Propagate, Skip, Zero, Poison, NonFinite::Error] {
        let options = options(Norm(1.0)).non_finite(policy);
        let roles = [Role::of(F32), Role::of(BF16).unmeasured()];
        cases.push(
            row(format!("policy/unmeasured/{policy:?}"), &[&[3.0], &[1.0, NAN]], options).roles(&roles),
        );
    }
    cases
}
