//! Maximum norms: at the norm, next to it, and at the ends of the range of f32.

use super::coefficient_only;
use crate::case::Method::Norm;
use crate::case::{Case, Expect};

/// The norm is 13.
pub(crate) fn cases() -> Vec<Case> {
    let mut up = 13.0_f32;
    let mut down = 13.0_f32;
    let mut limits = vec![0.0, -0.0, 1e-45, 1e-30, 13.0, f32::MAX, f32::INFINITY];
    for _ in 0..3 {
        (up, down) = (up.next_up(), down.next_down());
        limits.extend([up, down]);
    }
    let clip_to = |max_norm: f32| {
        let name = format!("limit/{max_norm:e}");
        let options = [("", Norm(max_norm).into()), ("/coefficient_only", coefficient_only(max_norm))];
        options.map(|(suffix, options)| {
            Case::of(name.clone() + suffix, &[&[3.0, -4.0], &[12.0]], options, Expect::Definition)
        })
    };
    limits.into_iter().flat_map(clip_to).collect()
}
