//! Invalid options, and their errors.

use gradclip::DType::F32;
use gradclip::{Epsilon, Error, NonFinite, NormType};

use super::{INF, NAN, options};
use crate::case::Method::{Norm, Range, Rms, Tensor, Value};
use crate::case::{Case, Expect, Options};
use crate::common::role::Role;

pub(crate) fn cases() -> Vec<Case> {
    limits().into_iter().chain(other_options()).collect()
}

/// Invalid limits.
fn limits() -> Vec<Case> {
    let norm =
        |given| [Norm(given), Tensor(given), Rms(given)].map(|options| (options, Error::MaxNorm { given }));
    let value = |given| [(Value(given), Error::ClipValue { given })];
    let range = |low, high| [(Range(low, high), Error::ClipRange { low, high })];
    let rows = [-1.0, -1e-45, -INF, NAN].into_iter().flat_map(norm);
    let rows = rows.chain([-1.0, -1e-45, -INF, NAN].into_iter().flat_map(value));
    let rows = rows.chain(
        [(NAN, 1.0), (-1.0, NAN), (NAN, NAN), (1.0, -1.0), (INF, -INF), (1e-45, 0.0)]
            .into_iter()
            .flat_map(|(low, high)| range(low, high)),
    );
    rows.map(|(options, error)| {
        Case::of(format!("error/{options:?}"), &[&[3.0], &[4.0]], options, Expect::Error(error))
    })
    .collect()
}

/// Invalid options other than the limit, and invalid groups.
fn other_options() -> Vec<Case> {
    let norm = options(Norm(1.0));
    let f32 = Role::of(F32);
    let mut rows = Vec::new();
    for given in [0.0, -0.0, -1.0, NAN, INF, -INF, 1e-45] {
        for options in [norm.clone(), options(Value(1.0)), options(Range(0.0, 1.0))] {
            rows.push((options.loss_scale(given), Error::LossScale { given }));
        }
    }
    for given in [-1.0, -1e-45, NAN, INF, -INF] {
        rows.push((norm.clone().epsilon(Epsilon::Value(given)), Error::Epsilon { given }));
    }
    let given = NormType::P(NAN);
    rows.push((norm.clone().norm_type(given), Error::NormType { given }));
    for given in [NormType::L1, NormType::Inf, NormType::P(3.0), NormType::P(NAN)] {
        rows.push((options(Rms(1.0)).norm_type(given), Error::NormType { given }));
    }
    for method in [Value(1.0), Range(0.0, 1.0)] {
        let clip = if matches!(method, Value(_)) { "Clip::by_value" } else { "Clip::by_value_range" };
        for (options, what) in [
            (options(method).norm_type(NormType::L1), "norm_type"),
            (options(method).non_finite(NonFinite::Skip), "non_finite"),
            (options(method).coefficient_only(), "coefficient_only"),
        ] {
            rows.push((options, Error::NeedsNorm { what, clip }));
        }
    }
    for (methods, second, given) in [
        (vec![Norm(1.0), Tensor(1.0)], 1, ["by_global_norm", "by_norm"]),
        (vec![Norm(1.0), Norm(2.0), Value(1.0)], 2, ["by_global_norm", "by_value"]),
        (vec![Value(1.0), Norm(1.0)], 1, ["by_value", "by_global_norm"]),
        (vec![Tensor(1.0), Rms(1.0)], 1, ["by_norm", "by_rms"]),
    ] {
        let (option, given) = ("the kind of clip", given.map(String::from));
        rows.push((Options::groups(&methods), Error::GroupsDiffer { first: 0, second, option, given }));
    }
    rows.push((Options::groups(&[]), Error::NoClip));
    // An invalid limit for a group without gradients.
    rows.push((Options::groups(&[Norm(1.0), Norm(-2.0)]), {
        Error::InGroup { group: 1, error: Box::new(Error::MaxNorm { given: -2.0 }) }
    }));
    let contents: &[&[f32]] = &[&[3.0], &[4.0]];
    let case = |(options, error)| {
        let name = format!("error/{options:?}");
        Case::of(name, contents, options, Expect::Error(error)).roles(&[f32])
    };
    let mut cases: Vec<_> = rows.into_iter().map(case).collect();
    for (groups, given) in [(1, 1), (1, 7), (2, 2)] {
        let options = Options::groups(&vec![Norm(1.0); groups]);
        let error = Expect::Error(Error::GroupWithoutClip { gradient: 1.into(), given, groups });
        let name = format!("error/group_{given}_of_{groups}");
        cases.push(Case::of(name, contents, options, error).roles(&[f32, f32.group(given)]));
    }
    cases
}
