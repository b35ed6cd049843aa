//! Sums of elements of very different magnitudes.

use crate::case::Method::Norm;
use crate::case::{Case, Expect};

pub(crate) fn cases() -> Vec<Case> {
    /// Runs of equal elements: their lengths and their values.
    const FILLS: [(&str, &[(usize, f32)]); 12] = [
        ("constant", &[(100_000, 0.1)]),
        ("huge_among_tiny", &[(5000, 1e-4), (1, 1e4), (20_000, 1e-4)]),
        ("beyond_squares_among_ones", &[(5000, 1.0), (1, 1e30), (5000, 1.0)]),
        ("tiny_beside_ones", &[(5000, 1e-30), (5000, 1.0)]),
        ("tiny_beside_huge", &[(5000, 1e-30), (5000, 1e30)]),
        ("huge_medium_and_tiny", &[(4096, 1e25), (4096, 1e20), (4096, 1.0), (4096, 1e-20), (4096, 1e-40)]),
        // 2^-40 and 2^45, between which squares need no scaling, and the next numbers beyond them.
        ("smallest_plain", &[(9000, f32::from_bits(0x2b80_0000))]),
        ("largest_rescued_for_being_small", &[(9000, f32::from_bits(0x2b7f_ffff))]),
        ("largest_plain", &[(9000, f32::from_bits(0x5600_0000))]),
        ("smallest_rescued_for_being_large", &[(9000, f32::from_bits(0x5600_0001))]),
        (
            "both_sides_of_the_plain",
            &[(4096, f32::from_bits(0x2b7f_ffff)), (4096, f32::from_bits(0x2b80_0000))],
        ),
        ("subnormals", &[(5000, 1e-40), (5000, -3e-45)]),
    ];
    fn filled(rows: &'static [(usize, f32)]) -> impl Fn() -> Vec<Vec<f32>> {
        || rows.iter().map(|&(len, g)| vec![g; len]).collect()
    }
    let in_one = |rows: &'static [(usize, f32)]| move || vec![filled(rows)().concat()];
    let mut cases = Vec::new();
    for (name, rows) in FILLS {
        for max_norm in [1e-3, 1e-42] {
            let options = Norm(max_norm);
            let (whole, parts) =
                (format!("sum/{name}/{max_norm:e}/one"), format!("sum/{name}/{max_norm:e}/many"));
            cases.push(Case::new(whole, in_one(rows), options, Expect::Definition));
            cases.push(Case::new(parts, filled(rows), options, Expect::Definition));
        }
    }
    cases
}
