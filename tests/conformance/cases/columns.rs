//! Gradients with columns, of every type and norm: odd numbers of columns, several blocks of rows and of columns, a single row or
//! column, and special values in one column.

use gradclip::DType::{self, BF16, F16, F32};
use gradclip::{Error, NonFinite, NormType};

use super::{INF, NAN, row};
use crate::case::Method::{Agc, Norm, Rms, Tensor, Value};
use crate::case::{Case, Expect, Options};
use crate::common::numbers::noise;
use crate::common::role::Role;

pub(crate) fn cases() -> Vec<Case> {
    [shapes(), special_values(), roles(), errors()].into_iter().flatten().collect()
}

/// The numbers of rows and columns. With the least limits of a device, a block of several rows has at most 65536 elements.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (7, 3), (300, 2), (1, 9), (9, 1), (255, 255), (18, 515), (0, 5), (16, 64)];

fn shapes() -> Vec<Case> {
    let (l1, l2, inf, cubic) = (NormType::L1, NormType::L2, NormType::Inf, NormType::P(3.0));
    let (zero, smallest) = (NormType::P(0.0), NormType::P(f32::NEG_INFINITY));
    // A clip by the norm of a parameter measures both, so it covers every norm. Norms and element types are separate snippets.
    let norms: [(_, &[_], &[_]); 3] = [
        (F32, &[l2, l1, inf, cubic, zero, smallest], &[l2, cubic]),
        (F16, &[l2, l1, cubic], &[l2]),
        (BF16, &[l2, inf, zero], &[l2]),
    ];
    let mut cases = Vec::new();
    for (dtype, of_agc, of_each) in norms {
        for (kind, method, norms) in
            [("agc", Agc(0.1, 1e-3), of_agc), ("each", Tensor(0.5), of_each), ("rms", Rms(0.1), &[l2][..])]
        {
            for &norm_type in norms {
                let options = Options::from(method).norm_type(norm_type);
                cases.push(shaped(format!("columns/{kind}/{dtype:?}/{norm_type:?}"), dtype, options));
            }
        }
        // Other clips ignore columns.
        for (kind, method) in [("together", Norm(0.5)), ("value", Value(0.3))] {
            cases.push(shaped(format!("columns/{kind}/{dtype:?}"), dtype, method.into()));
        }
        let unscale = Options::from(Agc(0.1, 1e-3)).loss_scale(3.0);
        cases.push(shaped(format!("columns/loss_scale/{dtype:?}"), dtype, unscale));
    }
    cases.push(shaped("columns/coefficient_only".into(), F32, Options::from(Tensor(0.5)).coefficient_only()));
    cases
}

/// Creates a case from random gradients of all shapes, each with a parameter.
fn shaped(name: String, dtype: DType, options: Options) -> Case {
    let role =
        |((rows, columns), seed)| Role::of(dtype).columns(columns).parameter(&noise(seed, rows * columns));
    let roles: Vec<_> = SHAPES.into_iter().zip(700..).map(role).collect();
    let gradients =
        || SHAPES.into_iter().zip(800..).map(|((rows, columns), seed)| noise(seed, rows * columns)).collect();
    Case::new(name, gradients, options, Expect::Definition).roles(&roles)
}

/// Gradients with huge, tiny or non-finite elements in one column of several, whose neighbours are ordinary.
fn special_values() -> Vec<Case> {
    use NonFinite::{Poison, Propagate, Skip, Zero};
    const VALUES: [f32; 7] = [3e38, 1e25, 1e-40, -1e-25, -0.0, NAN, -INF];
    let gradient = |(value, seed)| {
        let mut gradient = noise(seed, 37 * 5);
        gradient.iter_mut().skip(3).step_by(5).for_each(|x| *x = value);
        gradient
    };
    let mut cases = Vec::new();
    for dtype in [F32, F16, BF16] {
        for policy in [Propagate, Skip, Zero, Poison] {
            for norm_type in [NormType::L2, NormType::L1, NormType::P(3.0)] {
                if norm_type != NormType::L2 && dtype != F32 && policy != Propagate {
                    continue;
                }
                let gradients = move || VALUES.into_iter().zip(1..).map(gradient).collect();
                let options = Options::from(Tensor(0.5)).norm_type(norm_type).non_finite(policy);
                let name = format!("columns/special/{dtype:?}/{policy:?}/{norm_type:?}");
                let case = Case::new(name, gradients, options, Expect::Definition);
                cases.push(case.roles(&[Role::of(dtype).columns(5); 7]));
            }
        }
    }
    cases
}

/// Groups, gradients that are only scaled or only measured, and neighbours with rows or without either.
fn roles() -> Vec<Case> {
    let f32 = Role::of(F32);
    let groups = Options::groups(&[Agc(0.01, 1e-3), Agc(1.0, 1e-3)]);
    let roles = [
        f32.columns(2).parameter(&[3.0, 4.0, 0.0, 1e-9]),
        f32.group(1).columns(2).parameter(&[3.0, 4.0, 1.0, 2.0]),
        Role::of(BF16).group(1).columns(3).parameter(&[0.5, 0.0, 2.0]),
        f32.columns(2).unmeasured(),
        f32.columns(2).unscaled().parameter(&[1.0, 1.0]),
        Role::of(F16).rows(2).parameter(&[1.0, 1.0]),
        f32.parameter(&[1.0]),
    ];
    let contents: [&[f32]; 7] = [
        &[6.0, 8.0, -1.0, 2.0],
        &[6.0, 8.0, -1.0, 2.0],
        &[3.0, 4.0, -5.0],
        &[7.0, -1.0],
        &[2.0, 9.0],
        &[5.0, 6.0],
        &[3.0],
    ];
    let mut cases = Vec::new();
    for scale in [1.0, 4.0] {
        let options = groups.clone().loss_scale(scale);
        cases.push(row(format!("columns/groups/{scale}"), &contents, options).roles(&roles));
    }
    cases
}

fn errors() -> Vec<Case> {
    let f32 = Role::of(F32);
    let contents: &[&[f32]] = &[&[1.0], &[2.0, 3.0, 4.0]];
    let case = |name: String, method, role, error| {
        Case::of(name, contents, Options::from(method), Expect::Error(error)).roles(&[f32, role])
    };
    let mut cases = Vec::new();
    for method in [Tensor(1.0), Norm(1.0), Value(1.0)] {
        for columns in [0, 2] {
            let error = Error::Columns { gradient: 1.into(), columns: columns as u64, elements: 3 };
            let name = format!("columns/error/{columns}/{method:?}");
            cases.push(case(name, method, f32.columns(columns), error));
        }
        let error = Error::RowsAndColumns { gradient: 1.into(), rows: 3, columns: 3 };
        cases.push(case(format!("columns/error/both/{method:?}"), method, f32.rows(3).columns(3), error));
    }
    let empty = |columns| f32.columns(columns);
    let error = Error::TooManyEmptyRows { gradient: 0.into(), rows: 1 << 21, most: 1 << 20 };
    let case = Case::of("columns/error/empty", &[&[]], Tensor(1.0), Expect::Error(error));
    cases.push(case.roles(&[empty(1 << 21)]));
    cases
}
