//! Every epsilon, with norms at the limit, a little above it, and near zero.

use gradclip::Epsilon;

use super::{INF, options, row};
use crate::case::Case;
use crate::case::Method::{Norm, Rms};

pub(crate) fn cases() -> Vec<Case> {
    let epsilons = [Epsilon::PyTorch, Epsilon::None, Epsilon::Value(1.0), Epsilon::Value(1e-12)];
    let mut cases = Vec::new();
    for epsilon in epsilons {
        for max_norm in [0.0, 1e-45, 1e-30, 4.0, 5.0, 5.000_000_5, 6.0, INF] {
            for (content, gradients) in [
                ("triangle", [3.0, -4.0]),
                ("zeros", [0.0, -0.0]),
                ("tiny", [1e-8, 0.0]),
                ("least", [1e-45, 0.0]),
            ] {
                let name = format!("epsilon/{epsilon:?}/{max_norm:e}/{content}");
                cases.push(row(name, &[&gradients], options(Norm(max_norm)).epsilon(epsilon)));
            }
        }
        let name = format!("epsilon/{epsilon:?}/rms");
        cases.push(row(name, &[&[3.0, -4.0], &[0.0]], options(Rms(0.5)).epsilon(epsilon)));
    }
    cases
}
