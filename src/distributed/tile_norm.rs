//! The norm of all partials of the tiles, added on the host in the order of the stage finalize, so that the bits are those of a
//! plan of all gradients. The functions follow those of `lib/finalize.wgsl`.

use crate::NormType;

/// The partial of a tile, as the norm pass writes it (`partials/plain.wgsl`).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Partial {
    pub(super) sum: f32,
    /// The bits of the largest magnitude, with [`SCALED`] set if the sum is that of scaled elements.
    pub(super) largest: u32,
}

/// What the partials of all tiles give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TileNorm {
    pub(super) norm: f64,
    pub(super) max_magnitude: f32,
    /// The first tile with an infinity or a NaN.
    pub(super) first_non_finite: Option<usize>,
}

const SCALED: u32 = 0x8000_0000;
const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;
const COLUMNS: usize = 256;

/// Returns the L1 or the L2 norm.
pub(super) fn tile_norm(norm_type: NormType, partials: &[Partial]) -> TileNorm {
    let largest = partials.iter().map(|partial| partial.largest & MAGNITUDE).max().unwrap_or(0);
    let is_non_finite = |partial: &Partial| partial.largest & MAGNITUDE >= INFINITY;
    let norm = if largest == 0 || largest >= INFINITY {
        f32::from_bits(largest).into()
    } else if partials.iter().any(|partial| partial.largest >= SCALED) {
        let exponent = exponent_of(largest);
        let sum = sum(partials, |&partial| rescaled(norm_type, partial, exponent));
        root(norm_type, sum) * f64::from(exponent).exp2()
    } else {
        root(norm_type, sum(partials, |partial| partial.sum))
    };
    TileNorm {
        norm,
        max_magnitude: f32::from_bits(largest),
        first_non_finite: partials.iter().position(is_non_finite),
    }
}

/// The root is rounded to f32, as on the device.
fn root(norm_type: NormType, sum: f32) -> f64 {
    match norm_type {
        NormType::L1 => sum.into(),
        _ => sum.sqrt().into(),
    }
}

/// Adds the partials of each column of a table with 256 columns, then the columns by a tree.
fn sum(partials: &[Partial], term: impl Fn(&Partial) -> f32) -> f32 {
    let terms: Vec<f32> = partials.iter().map(term).collect();
    let mut columns: Vec<f32> = (0..COLUMNS).map(|column| column_sum(&terms, column)).collect();
    let mut width = COLUMNS / 2;
    while width > 0 {
        for lane in 0..width {
            columns[lane] += columns[lane + width];
        }
        width /= 2;
    }
    columns[0]
}

/// Sums of sixteen rows, sums of sixteen such sums, and so on.
fn column_sum(terms: &[f32], column: usize) -> f32 {
    let (mut ones, mut sixteens, mut rest) = (0.0, 0.0, 0.0);
    for (index, row) in (0..terms.len().div_ceil(COLUMNS)).step_by(16).enumerate() {
        ones += sixteen_rows(terms, column, row);
        if index % 16 == 15 {
            sixteens += ones;
            ones = 0.0;
        }
        if index % 256 == 255 {
            rest += sixteens;
            sixteens = 0.0;
        }
    }
    rest + (sixteens + ones)
}

fn sixteen_rows(terms: &[f32], column: usize, first: usize) -> f32 {
    let at = |row: usize| terms.get(row * COLUMNS + column).copied().unwrap_or(0.0);
    let four = |row: usize| (at(row) + at(row + 1)) + (at(row + 2) + at(row + 3));
    let eight = |row: usize| four(row) + four(row + 4);
    eight(first) + eight(first + 8)
}

/// Returns the sum as if all elements had been divided by `2^exponent`.
fn rescaled(norm_type: NormType, partial: Partial, exponent: i32) -> f32 {
    // As LARGEST_SCALE of l2.wgsl.
    const LARGEST_SCALE: f32 = 9_223_372_036_854_775_808.0;
    let own = if partial.largest >= SCALED { exponent_of(partial.largest & MAGNITUDE) } else { 0 };
    let scale = (own - exponent).clamp(-126, 127);
    let scale = f32::from_bits(((scale + 127) << 23).cast_unsigned());
    match norm_type {
        NormType::L1 => partial.sum * scale,
        _ => partial.sum * scale.min(LARGEST_SCALE) * scale.min(LARGEST_SCALE),
    }
}

/// Returns the exponent of a magnitude, also of a subnormal one. That of 0 is less than any other.
fn exponent_of(magnitude: u32) -> i32 {
    match (magnitude >> 23).cast_signed() {
        // The position of the leading bit; -1 without one.
        0 => (31 - magnitude.leading_zeros().cast_signed()) - 149,
        field => field - 127,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds as the invocations of a wide workgroup do: sixteen rows in turn, each by a tree, then the rows of a column in order.
    fn as_invocations_add(terms: &[f32]) -> f32 {
        let rows: Vec<Vec<f32>> = terms
            .chunks(COLUMNS)
            .map(|row| {
                let mut row = row.to_vec();
                row.resize(COLUMNS, 0.0);
                row
            })
            .collect();
        let zeros = vec![0.0; COLUMNS];
        let tree = |mut level: Vec<Vec<f32>>| {
            while level.len() > 1 {
                level = level
                    .chunks(2)
                    .map(|pair| pair[0].iter().zip(&pair[1]).map(|(a, b)| a + b).collect())
                    .collect();
            }
            level.remove(0)
        };
        let mut levels = vec![zeros.clone(); 3];
        for (index, sixteen) in rows.chunks(16).enumerate() {
            let mut sixteen = sixteen.to_vec();
            sixteen.resize(16, zeros.clone());
            let sum = tree(sixteen);
            for (one, sum) in levels[0].iter_mut().zip(&sum) {
                *one += sum;
            }
            for (level, period) in [(0, 16), (1, 256)] {
                if (index + 1) % period == 0 {
                    let moved = std::mem::replace(&mut levels[level], zeros.clone());
                    levels[level + 1].iter_mut().zip(&moved).for_each(|(above, moved)| *above += moved);
                }
            }
        }
        let columns = (0..COLUMNS).map(|column| levels[2][column] + (levels[1][column] + levels[0][column]));
        let mut columns: Vec<f32> = columns.collect();
        while columns.len() > 1 {
            let (left, right) = columns.split_at(columns.len() / 2);
            columns = left.iter().zip(right).map(|(a, b)| a + b).collect();
        }
        columns[0]
    }

    #[test]
    fn sums_are_in_the_order_of_finalize() {
        let term = |index: usize| (index.wrapping_mul(0x9e37_79b9) >> 8 & 0xffff) as f32 / 1000.0;
        for count in [0, 1, 256, 4097, 70_000, 1_200_000, 2_500_001] {
            let partials: Vec<_> =
                (0..count).map(|index| Partial { sum: term(index), largest: 1.0_f32.to_bits() }).collect();
            let terms: Vec<f32> = partials.iter().map(|partial| partial.sum).collect();
            let expected = as_invocations_add(&terms);
            assert_eq!(
                sum(&partials, |partial| partial.sum).to_bits(),
                expected.to_bits(),
                "{count} partials"
            );
        }
    }

    #[test]
    fn magnitudes_decide_what_is_summed() {
        let partial = |sum: f32, largest: f32| Partial { sum, largest: largest.to_bits() };
        let scaled = |sum: f32, largest: f32| Partial { sum, largest: largest.to_bits() | SCALED };
        let norm = |partials: &[Partial]| tile_norm(NormType::L2, partials);
        assert_eq!(norm(&[]), TileNorm { norm: 0.0, max_magnitude: 0.0, first_non_finite: None });
        assert_eq!(norm(&[partial(9.0, 3.0), partial(16.0, 4.0)]).norm, 5.0);
        assert_eq!(tile_norm(NormType::L1, &[partial(3.0, 3.0), partial(4.0, 4.0)]).norm, 7.0);
        // 3 · 2^100 and 4 · 2^100: the partials are sums of (1.5)² and of 1².
        let big = 2.0_f32.powi(101);
        let beyond = norm(&[scaled(2.25, 1.5 * big), scaled(1.0, 2.0 * big), partial(9.0, 3.0)]);
        assert_eq!((beyond.norm, beyond.max_magnitude), (5.0 * 2.0_f64.powi(100), 2.0 * big));
        let bad = norm(&[partial(1.0, 1.0), partial(1.0, f32::INFINITY), partial(1.0, 2.0)]);
        assert_eq!((bad.norm, bad.first_non_finite), (f64::INFINITY, Some(1)));
        assert!(norm(&[partial(1.0, f32::INFINITY), partial(1.0, f32::NAN)]).norm.is_nan());
        assert_eq!([1, 0x007f_ffff, 0x0080_0000, 0x3f80_0000].map(exponent_of), [-149, -127, -126, 0]);
    }
}
