//! Limits relative to the norms of parameters, and gradients that are clipped row by row.

use gradclip::DType::{self, BF16, F16, F32};
use gradclip::{Epsilon, Error, NonFinite, NormType};

use crate::cases::Method::{Norm, Own, Relative, Rms};
use crate::cases::{Case, Expect, Method, Options};
use crate::common::numbers::noise;
use crate::common::role::Role;

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

pub(crate) fn cases() -> Vec<Case> {
    [rows(), relative(), special(), errors()].into_iter().flatten().collect()
}

fn row(name: impl Into<String>, gradients: &[&[f32]], options: impl Into<Options>, roles: &[Role]) -> Case {
    Case::of(name, gradients, options, Expect::Definition).roles(roles)
}

/// Rows of odd lengths and of such as are longer than a tile, in every type and norm.
fn rows() -> Vec<Case> {
    let shapes = [(1, 1), (7, 3), (3, 4096), (2, 4099), (5, 0), (64, 16), (1, 9)];
    let methods = [("each", Own(0.5)), ("rms", Rms(0.1)), ("relative", Relative(0.1, 1e-3))];
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
        // Where all share a norm, rows are nothing special.
        let together = Options::from(Norm(0.5));
        cases.push(shaped(format!("rows/together/{dtype:?}"), &shapes, dtype, together));
    }
    cases
}

fn shaped(name: String, shapes: &[(usize, usize)], dtype: DType, options: Options) -> Case {
    let role = |(&(rows, len), seed)| Role::of(dtype).rows(rows).parameter(&noise(seed, rows * len));
    let roles: Vec<_> = shapes.iter().zip(500..).map(role).collect();
    let lens: Vec<_> = shapes.iter().map(|(rows, len)| rows * len).collect();
    let gradients = move || lens.iter().zip(600..).map(|(&len, seed)| noise(seed, len)).collect();
    Case::new(name, gradients, options, Expect::Definition).roles(&roles)
}

fn relative() -> Vec<Case> {
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
            let options = Options { loss_scale: scale, ..Relative(clipping, floor).into() };
            cases.push(shaped(format!("relative/{name}/{scale:?}"), &shapes, F32, options));
        }
    }
    let alone = Options::from(Relative(0.01, 1e-3)).coefficient_only();
    cases.push(shaped("relative/coefficient_only".into(), &shapes, F32, alone));
    let epsilon = Options::from(Relative(0.01, 1e-3)).epsilon(Epsilon::PyTorch);
    cases.push(shaped("relative/epsilon".into(), &shapes, F32, epsilon));
    // Groups with shares of their own; gradients that are only scaled, or only measured.
    let groups = Options::groups(&[Relative(0.01, 1e-3), Relative(1.0, 1e-3)]);
    let roles = [
        f32.parameter(&[3.0, 4.0]),
        f32.group(1).parameter(&[3.0, 4.0]),
        Role::of(BF16).group(1).rows(2).parameter(&[0.5, 0.0]),
        f32.unmeasured(),
        f32.unscaled().parameter(&[1.0]),
        f32.rows(2).unmeasured().parameter(&[1.0, 1.0]),
    ];
    let contents: [&[f32]; 6] = [&[6.0, 8.0], &[6.0, 8.0], &[3.0, 4.0], &[7.0, -1.0], &[2.0], &[5.0, 6.0]];
    cases.push(row("relative/groups", &contents, groups, &roles));
    let scaled = Options { loss_scale: Some(4.0), ..Relative(0.01, 1e-3).into() };
    cases.push(row("relative/unmeasured_scaled", &contents[3..4], scaled, &[f32.unmeasured()]));
    cases
}

/// Parameters and gradients of any magnitude, and such as are no numbers.
fn special() -> Vec<Case> {
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
                let options = Options::from(Relative(clipping, 0.0)).non_finite(policy);
                let roles = [Role::of(F32).parameter(&parameter), Role::of(F32).parameter(&[1.0])];
                let name = format!("relative/{name}/{clipping}/{policy:?}");
                cases.push(row(name, &[&gradient, &[0.25]], options, &roles));
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
        Case::of(format!("relative/error/{name}"), contents, method, Expect::Error(error)).roles(roles)
    };
    let relative = Relative(0.1, 1e-3);
    let missing = [own[0], f32];
    let short = [own[0], f32.parameter(&[1.0; 2])];
    let [none, two] = [0, 2].map(|rows| [own[0], own[1].rows(rows)]);
    let mut cases = vec![
        case("no_parameter", relative, &missing, Error::MissingParameter { gradient: 1.into() }),
        case("length", relative, &short, Error::ParameterLength { gradient: 1.into(), given: 2, needed: 3 }),
        case("rows", relative, &two, Error::Rows { gradient: 1.into(), rows: 2, elements: 3 }),
        case("rows_of_each", Own(1.0), &two, Error::Rows { gradient: 1.into(), rows: 2, elements: 3 }),
        case("rows_together", Norm(1.0), &two, Error::Rows { gradient: 1.into(), rows: 2, elements: 3 }),
        case("no_rows", relative, &none, Error::Rows { gradient: 1.into(), rows: 0, elements: 3 }),
    ];
    // Rows without elements are whatever a caller says; so there is a bound.
    let most = 1 << 20;
    let empty = |rows| f32.rows(rows).parameter(&[]);
    for method in [relative, Own(1.0), Rms(1.0), Norm(1.0)] {
        for (name, rows, gradient) in
            [("most", [usize::MAX, 1], 0), ("beside_another", [1, 1 << 40], 1), ("together", [most, 2], 1)]
        {
            let name = format!("relative/error/empty_rows_{name}/{method:?}");
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
        cases.push(case(&format!("clipping_{given}"), Relative(given, 1.0), &own, Error::MaxNorm { given }));
    }
    for given in [-1e-3, INF, NAN] {
        let error = Error::ParameterFloor { given };
        cases.push(case(&format!("floor_{given}"), Relative(0.1, given), &own, error));
    }
    cases
}
