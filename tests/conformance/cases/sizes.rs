//! Sizes near those of a vector, a workgroup, an invocation's block and a tile.

use std::iter::repeat_n;

use crate::case::Method::{Norm, Value};
use crate::case::{Case, Expect};
use crate::common::numbers::noise;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for len in [0, 1, 2, 3, 4, 5, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 16383, 16384, 16385] {
        let some = move || vec![noise(1, len), noise(2, len / 3), noise(3, len + 1)];
        let last = move || vec![vec![0.0; len], repeat_n(0.0, len).chain([7.0]).collect()];
        for (suite, options) in [("clipped", Norm(0.5)), ("within", Norm(1e3)), ("clamped", Value(0.5))] {
            cases.push(Case::new(format!("size/{len}/{suite}"), some, options, Expect::Definition));
        }
        // A norm that misses the last element is 0.
        cases.push(Case::new(format!("size/{len}/last"), last, Norm(1.0), Expect::Definition));
    }
    cases
}
