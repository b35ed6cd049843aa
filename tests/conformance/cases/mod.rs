//! The table of cases, by subject.

mod agc;
mod beyond_f32;
mod clamp;
mod columns;
mod combinations;
mod epsilon;
mod f16_bf16;
mod groups;
mod invalid_options;
mod loss_scale;
mod max_norms;
mod mixed_types;
mod non_finite;
mod norm_types;
mod peer_outputs;
mod peer_suites;
mod per_tensor;
mod rows;
mod sizes;
mod skip_above;
mod special_values;
mod sums;
mod torch_golden;

use gradclip::DType::{self, BF16, F16};

use crate::case::{Case, Expect, Method, Options};
use crate::common::numbers::noise;

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

/// The 16-bit types.
const NARROW: [DType; 2] = [F16, BF16];

/// Returns all cases.
pub(crate) fn all() -> Vec<Case> {
    let suites = [
        torch_golden::cases(),
        peer_outputs::cases(),
        peer_suites::cases(),
        sizes::cases(),
        sums::cases(),
        special_values::cases(),
        max_norms::cases(),
        epsilon::cases(),
        beyond_f32::cases(),
        norm_types::cases(),
        non_finite::cases(),
        loss_scale::cases(),
        f16_bf16::cases(),
        mixed_types::cases(),
        groups::cases(),
        per_tensor::cases(),
        rows::cases(),
        agc::cases(),
        columns::cases(),
        clamp::cases(),
        skip_above::cases(),
        combinations::cases(),
        invalid_options::cases(),
    ];
    suites.into_iter().flatten().collect()
}

/// Creates a case from literal gradients, which is checked against the reference.
fn row(name: impl Into<String>, gradients: &[&[f32]], options: impl Into<Options>) -> Case {
    Case::of(name, gradients, options, Expect::Definition)
}

/// Creates a case from the lengths of random gradients, which is checked against the reference.
fn long(name: impl Into<String>, lens: &'static [usize], options: impl Into<Options>) -> Case {
    let gradients = || lens.iter().zip(70..).map(|(&len, seed)| noise(seed, len)).collect();
    Case::new(name, gradients, options, Expect::Definition)
}

fn options(method: Method) -> Options {
    method.into()
}

fn coefficient_only(max_norm: f32) -> Options {
    Options::from(Method::Norm(max_norm)).coefficient_only()
}
