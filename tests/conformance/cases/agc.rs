//! Adaptive gradient clipping: limits relative to the norms of parameters.

use gradclip::DType::{BF16, F32};
use gradclip::{Epsilon, Error, NonFinite};

use super::rows::shaped;
use super::{INF, NAN, row};
use crate::case::Method::{Agc, Norm, Rms, Tensor};
use crate::case::{Case, Expect, Method, Options};
use crate::common::role::Role;

pub(crate) fn cases() -> Vec<Case> {
    [limits(), special_values(), errors()].into_iter().flatten().collect()
}

/// Limits above and below the norm, with loss scales and groups.
fn limits() -> Vec<Case> {
    let f32 = Role::of(F32);
    let shapes = [(8, 128), (1, 300), (3, 5)];
    let mut cases = Vec::new();
    for (name, clipping, floor) in [
        ("clipped", 0.01, 1e-3),
        ("within", 100.0, 1e-3),
        ("zeroed", 0.0, 1e-3),
        ("unlimited", INF, 0.0),
        ("floor", 0.01, 1e9),
        ("no_floor", 0.5, 0.0),
    ] {
        for scale in [None, Some(1024.0), Some(3.0)] {
            let options = Options { loss_scale: scale, ..Agc(clipping, floor).into() };
            cases.push(shaped(format!("agc/{name}/{scale:?}"), &shapes, F32, options));
        }
    }
    let alone = Options::from(Agc(0.01, 1e-3)).coefficient_only();
    cases.push(shaped("agc/coefficient_only".into(), &shapes, F32, alone));
    let epsilon = Options::from(Agc(0.01, 1e-3)).epsilon(Epsilon::PyTorch);
    cases.push(shaped("agc/epsilon".into(), &shapes, F32, epsilon));
    // Groups with different ratios; gradients that are only scaled, or only measured.
    let groups = Options::groups(&[Agc(0.01, 1e-3), Agc(1.0, 1e-3)]);
    let roles = [
        f32.parameter(&[3.0, 4.0]),
        f32.group(1).parameter(&[3.0, 4.0]),
        Role::of(BF16).group(1).rows(2).parameter(&[0.5, 0.0]),
        f32.unmeasured(),
        f32.unscaled().parameter(&[1.0]),
        f32.rows(2).unmeasured().parameter(&[1.0, 1.0]),
    ];
    let contents: [&[f32]; 6] = [&[6.0, 8.0], &[6.0, 8.0], &[3.0, 4.0], &[7.0, -1.0], &[2.0], &[5.0, 6.0]];
    cases.push(row("agc/groups", &contents, groups).roles(&roles));
    let scaled = Options { loss_scale: Some(4.0), ..Agc(0.01, 1e-3).into() };
    cases.push(row("agc/unmeasured_scaled", &contents[3..4], scaled).roles(&[f32.unmeasured()]));
    cases
}

/// Parameters and gradients at the ends of the range of f32, and non-finite ones.
fn special_values() -> Vec<Case> {
    use NonFinite::{Poison, Propagate, Skip, Zero};
    let mut cases = Vec::new();
    for (name, parameter, gradient) in [
        ("huge", [3e38, 3e38], [1e38, 2e38]),
        ("tiny", [1e-40, 1e-42], [1e-38, 1e-41]),
        ("huge_gradient", [1.0, 2.0], [3e38, 3e38]),
        ("tiny_gradient", [1.0, 2.0], [1e-40, 0.0]),
        ("zero_gradient", [1.0, 2.0], [0.0, -0.0]),
        ("zero_parameter", [0.0, -0.0], [1.0, 2.0]),
        ("nan_parameter", [1.0, NAN], [1.0, 2.0]),
        ("infinite_parameter", [-INF, 1.0], [1.0, 2.0]),
        ("nan_gradient", [1.0, 2.0], [NAN, 2.0]),
        ("infinite_gradient", [1.0, 2.0], [INF, 2.0]),
        ("both_infinite", [INF, 2.0], [INF, 2.0]),
    ] {
        for clipping in [0.0, 0.1, INF] {
            for policy in [Propagate, Skip, Zero, Poison] {
                let options = Options::from(Agc(clipping, 0.0)).non_finite(policy);
                let roles = [Role::of(F32).parameter(&parameter), Role::of(F32).parameter(&[1.0])];
                let name = format!("agc/{name}/{clipping}/{policy:?}");
                cases.push(row(name, &[&gradient, &[0.25]], options).roles(&roles));
            }
        }
    }
    cases
}

fn errors() -> Vec<Case> {
    let f32 = Role::of(F32);
    let contents: &[&[f32]] = &[&[1.0], &[2.0, 3.0, 4.0]];
    let own = [f32.parameter(&[1.0]), f32.parameter(&[1.0; 3])];
    let case = |name: &str, method: Method, roles: &[Role], error| {
        Case::of(format!("agc/error/{name}"), contents, method, Expect::Error(error)).roles(roles)
    };
    let agc = Agc(0.1, 1e-3);
    let missing = [own[0], f32];
    let short = [own[0], f32.parameter(&[1.0; 2])];
    let [none, two] = [0, 2].map(|rows| [own[0], own[1].rows(rows)]);
    let mut cases = vec![
        case("no_parameter", agc, &missing, Error::MissingParameter { gradient: 1.into() }),
        case("length", agc, &short, Error::ParameterLength { gradient: 1.into(), given: 2, needed: 3 }),
        case("rows", agc, &two, Error::Rows { gradient: 1.into(), rows: 2, elements: 3 }),
        case("rows_of_each", Tensor(1.0), &two, Error::Rows { gradient: 1.into(), rows: 2, elements: 3 }),
        case("rows_together", Norm(1.0), &two, Error::Rows { gradient: 1.into(), rows: 2, elements: 3 }),
        case("no_rows", agc, &none, Error::Rows { gradient: 1.into(), rows: 0, elements: 3 }),
    ];
    // A gradient without elements could have any number of rows, so there is a maximum.
    let most = 1 << 20;
    let empty = |rows| f32.rows(rows).parameter(&[]);
    for method in [agc, Tensor(1.0), Rms(1.0), Norm(1.0)] {
        for (name, rows, gradient) in
            [("most", [usize::MAX, 1], 0), ("beside_another", [1, 1 << 40], 1), ("together", [most, 2], 1)]
        {
            let name = format!("agc/error/empty_rows_{name}/{method:?}");
            let error = Error::TooManyEmptyRows {
                gradient: gradient.into(),
                rows: rows[gradient] as u64,
                most: most as u64,
            };
            let roles = rows.map(empty);
            cases.push(Case::of(name, &[&[], &[]], method, Expect::Error(error)).roles(&roles));
        }
    }
    for given in [-1.0, NAN] {
        cases.push(case(&format!("clipping_{given}"), Agc(given, 1.0), &own, Error::MaxNorm { given }));
    }
    for given in [-1e-3, INF, NAN] {
        let error = Error::ParameterFloor { given };
        cases.push(case(&format!("floor_{given}"), Agc(0.1, given), &own, error));
    }
    cases
}
