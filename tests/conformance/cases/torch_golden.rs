//! The outcomes of PyTorch, from `tests/fixtures/torch_golden.json`.

use std::collections::HashMap;

use gradclip::{Error, NormType};
use serde_json::Value;

use crate::case::{Case, Expect, Method, Options, Peer};

/// A difference from PyTorch.
#[derive(Clone, Copy)]
enum Difference {
    /// PyTorch computes sums and powers in f32, which affects the last bits of its norm. Its coefficients below 2^-126
    /// have fewer bits.
    Rounded,
    /// PyTorch sets finite gradients to zero if their squares or their norm exceed f32. This crate clips them.
    Better,
    /// PyTorch accepts an invalid limit.
    Error,
}

const DIFFERENCES: [(&str, Difference); 21] = [
    ("torch/torch_suite_small/0", Difference::Rounded),
    ("torch/randn_255/0", Difference::Rounded),
    ("torch/randn_256/0", Difference::Rounded),
    ("torch/randn_1000/0", Difference::Rounded),
    ("torch/0.5/torch_suite_large/0", Difference::Rounded),
    ("torch/1.5/torch_suite_large/0", Difference::Rounded),
    ("torch/3/torch_suite_large/0", Difference::Rounded),
    ("torch/-1/torch_suite_large/0", Difference::Rounded),
    ("torch/0.5/torch_suite_small/0", Difference::Rounded),
    ("torch/1.5/torch_suite_small/0", Difference::Rounded),
    ("torch/3/pyth_3_4_12/0", Difference::Rounded),
    ("torch/nonfinite_or_extreme/3", Difference::Better),
    ("torch/nonfinite_or_extreme/4", Difference::Better),
    ("torch/1/nonfinite_or_extreme/4", Difference::Better),
    ("torch/inf/nonfinite_or_extreme/4", Difference::Rounded),
    ("torch/max_inf_norm_overflow/0", Difference::Better),
    ("torch/pyth_max/2", Difference::Error),
    ("torch/pyth_max/6", Difference::Error),
    ("torch/zeros/2", Difference::Error),
    ("torch/value/specials/3", Difference::Error),
    ("torch/value/specials/5", Difference::Error),
];

/// Returns a case for each call that this crate supports. Calls with the same name are numbered.
pub(crate) fn cases() -> Vec<Case> {
    let golden: Value =
        serde_json::from_str(include_str!("../../fixtures/torch_golden.json")).expect("well-formed JSON");
    let by_norm = list(&golden["norm"]).iter().map(|call| {
        let max_norm = decimal(&call["max_norm"]);
        let p = decimal(&call["norm_type"]);
        let suite = if p == 2.0 { "torch".to_owned() } else { format!("torch/{p}") };
        let options = Options::from(Method::Norm(max_norm)).norm_type(NormType::P(p));
        (suite, call, options, Some(number(&call["total_norm"])), Error::MaxNorm { given: max_norm })
    });
    let by_value = list(&golden["value"]).iter().map(|call| {
        let bound = decimal(&call["clip_value"]);
        ("torch/value".to_owned(), call, Method::Value(bound).into(), None, Error::ClipValue { given: bound })
    });

    let mut differences = HashMap::from(DIFFERENCES);
    let mut numbers = HashMap::<_, usize>::new();
    let mut cases = Vec::new();
    for (suite, call, options, total_norm, error) in by_norm.chain(by_value) {
        let name = format!("{suite}/{}", text(&call["name"]));
        let number = numbers.entry(name.clone()).or_default();
        let name = format!("{name}/{number}");
        *number += 1;
        let peer = Peer { total_norm, clipped: tensors(&call["clipped"]) };
        let expect = match differences.remove(name.as_str()) {
            None => Expect::Torch(peer),
            Some(Difference::Rounded) => Expect::Rounded(peer),
            Some(Difference::Better) => Expect::Better(peer),
            Some(Difference::Error) => Expect::Error(error),
        };
        let gradients = tensors(&call["grads"]);
        cases.push(Case::new(name, move || gradients.clone(), options, expect));
    }
    assert!(differences.is_empty(), "no such call: {:?}", differences.keys());
    cases
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

pub(crate) fn decimal(value: &Value) -> f32 {
    text(value).parse().expect("a number")
}

pub(crate) fn number(value: &Value) -> f32 {
    f32::from_bits(u32::from_str_radix(text(value), 16).expect("the bits of a number"))
}

pub(crate) fn tensors(value: &Value) -> Vec<Vec<f32>> {
    list(value).iter().map(|tensor| list(tensor).iter().map(number).collect()).collect()
}
