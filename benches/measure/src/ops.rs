//! The measured operations, and the checks of their results.

use anyhow::{Result, bail, ensure};
use bytemuck::Pod;
use gradclip::{Clip, ClipRecord, DType, reference};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::data::CHUNK_BYTES;

/// A measured operation on the gradients of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Measures the global norm.
    Norm,
    /// Clips to twice the norm, which changes nothing.
    NotExceeded,
    /// Clips to half of the norm.
    Exceeded,
    /// Computes the norm and the coefficient without scaling the gradients.
    CoefficientOnly,
    /// Clamps every element.
    Clamp,
    /// Removes a loss scale and clips to half of the norm.
    LossScale,
}

/// The exceeded limit, as a fraction of the norm.
const HALF: f64 = 0.5;
/// The limit that is not exceeded, as a multiple of the norm.
const TWICE: f64 = 2.0;
/// The clamp's bound. Half of the elements exceed it, since they are uniform in [-1, 1).
pub(crate) const CLIP_VALUE: f32 = 0.5;
/// The loss scale, small enough that unscaled f16 gradients stay normal numbers.
const LOSS_SCALE: f32 = 8.0;

impl Op {
    /// All operations.
    pub const ALL: [Self; 6] =
        [Self::Norm, Self::NotExceeded, Self::Exceeded, Self::CoefficientOnly, Self::Clamp, Self::LossScale];

    /// Returns the name that the report uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::NotExceeded => "clip not exceeded",
            Self::Exceeded => "clip exceeded",
            Self::CoefficientOnly => "coefficient only",
            Self::Clamp => "clamp",
            Self::LossScale => "loss scale",
        }
    }

    /// Returns the minimum number of read passes and of read-and-write passes over the gradients.
    pub const fn passes(self) -> (usize, usize) {
        match self {
            Self::Norm | Self::NotExceeded | Self::CoefficientOnly => (1, 0),
            Self::Exceeded | Self::LossScale => (1, 1),
            Self::Clamp => (0, 1),
        }
    }

    /// Returns the minimum number of bytes that the operation moves for `gradients` bytes of gradients.
    pub(crate) const fn bytes(self, gradients: usize) -> usize {
        let (read, rewritten) = self.passes();
        gradients * (read + 2 * rewritten)
    }

    /// Whether the operation changes the gradients.
    pub(crate) const fn changes(self) -> bool {
        self.passes().1 > 0
    }

    /// Returns the clip for gradients of norm `norm`.
    pub fn clip(self, norm: f64) -> Clip {
        match self {
            Self::Norm | Self::CoefficientOnly => Clip::by_global_norm(limit(norm * HALF)).coefficient_only(),
            Self::NotExceeded => Clip::by_global_norm(limit(norm * TWICE)),
            Self::Exceeded => Clip::by_global_norm(limit(norm * HALF)),
            Self::Clamp => Clip::by_value(CLIP_VALUE),
            Self::LossScale => {
                let unscaled = norm / f64::from(LOSS_SCALE);
                Clip::by_global_norm(limit(unscaled * HALF)).loss_scale(LOSS_SCALE)
            }
        }
    }

    /// Returns the limit of a measurement-only clip for gradients of norm `norm`.
    pub(crate) const fn limit(norm: f64) -> f32 {
        limit(norm * HALF)
    }

    /// Returns the expected value of an element that was `before`, for gradients of norm `norm`.
    fn element(self, before: f64, norm: f64) -> f64 {
        let scale = f64::from(LOSS_SCALE);
        match self {
            Self::Norm | Self::NotExceeded | Self::CoefficientOnly => before,
            Self::Exceeded => before * reference::clip_coef(norm, norm * HALF),
            Self::Clamp => before.clamp((-CLIP_VALUE).into(), CLIP_VALUE.into()),
            Self::LossScale => before / scale * reference::clip_coef(norm / scale, norm / scale * HALF),
        }
    }

    /// Checks the record of a clip of gradients of norm `norm`.
    pub fn check_record(self, record: &ClipRecord, norm: f64) -> Result<()> {
        let (norm, limit) = match self {
            Self::LossScale => (norm / f64::from(LOSS_SCALE), norm / f64::from(LOSS_SCALE) * HALF),
            Self::NotExceeded => (norm, norm * TWICE),
            _ => (norm, norm * HALF),
        };
        for (what, found, expected) in [
            ("norm", record.total_norm, norm),
            ("coefficient", record.clip_coef, reference::clip_coef(norm, limit)),
        ] {
            ensure!(
                is_close(found.into(), expected, 1e-6),
                "{}: the {what} is {found}, but it should be {expected}",
                self.name()
            );
        }
        Ok(())
    }

    /// Checks the elements after the operation. `before` and `after` are bytes of `dtype` elements; `norm` is the
    /// global norm.
    pub(crate) fn check_elements(self, dtype: DType, before: &[u8], after: &[u8], norm: f64) -> Result<()> {
        ensure!(
            before.len() == after.len(),
            "{}: expected {} bytes of gradients, found {}",
            self.name(),
            before.len(),
            after.len()
        );
        if !self.changes() {
            ensure!(
                before == after,
                "{}: the operation changed gradients that it should not change",
                self.name()
            );
            return Ok(());
        }
        // One unit in the last place, and for f16 also one unit of the smallest subnormal number.
        let (relative, absolute) = match dtype {
            DType::F32 => (1e-6, 0.0),
            DType::F16 => (f64::exp2(-10.0), f64::exp2(-24.0)),
            _ => (f64::exp2(-7.0), 0.0),
        };
        let tolerance = |expected: f64| relative * expected.abs() + absolute;
        let found = match dtype {
            DType::F32 => first_wrong::<f32>(before, after, |x| self.element(x, norm), tolerance),
            DType::F16 => first_wrong::<f16>(before, after, |x| self.element(x, norm), tolerance),
            _ => first_wrong::<bf16>(before, after, |x| self.element(x, norm), tolerance),
        };
        match found {
            None => Ok(()),
            Some((after, expected)) => {
                bail!("{}: an element is {after}, but it should be {expected}", self.name())
            }
        }
    }
}

/// Rounds a limit to the API's type.
#[expect(clippy::cast_possible_truncation, reason = "limits in the API are f32")]
const fn limit(norm: f64) -> f32 {
    norm as f32
}

fn is_close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() <= tolerance * expected.abs()
}

/// Returns a wrong element and its expected value.
fn first_wrong<T: Pod + Into<f64>>(
    before: &[u8],
    after: &[u8],
    expected: impl Fn(f64) -> f64 + Sync,
    tolerance: impl Fn(f64) -> f64 + Sync,
) -> Option<(f64, f64)> {
    let chunks = before.par_chunks(CHUNK_BYTES).zip(after.par_chunks(CHUNK_BYTES));
    chunks.find_map_any(|(before, after)| {
        let elements = bytemuck::cast_slice::<_, T>(before).iter().zip(bytemuck::cast_slice::<_, T>(after));
        let mut pairs = elements.map(|(&before, &after)| (after.into(), expected(before.into())));
        let is_right = |after: f64, expected: f64| (after - expected).abs() <= tolerance(expected);
        // A NaN compares as wrong.
        pairs.find(|&(after, expected)| !is_right(after, expected))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{AlignedBytes, SetData, gradients};
    use crate::sets::GradientSet;
    use gradclip::cpu;

    /// Accepts correct results; rejects one wrong element and one wrong record field.
    #[test]
    fn checks_reject_wrong_results() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let set = GradientSet::new("any", dtype, vec![1000]);
            let data = SetData::new(&set);
            let range = data.ranges[0].clone();
            let before = &data.bytes()[range.clone()];
            for op in Op::ALL {
                let mut memory = AlignedBytes::zeroed(data.bytes().len());
                memory.bytes_mut().copy_from_slice(data.bytes());
                let mut list = gradients(dtype, &data.ranges, memory.bytes_mut());
                let records = cpu::clip(&mut list, op.clip(data.norm)).unwrap();
                let after = &mut memory.bytes_mut()[range.clone()];
                op.check_elements(dtype, before, after, data.norm).unwrap();
                // Flips an exponent bit of an element in the middle.
                after[1003] ^= 0x10;
                assert!(op.check_elements(dtype, before, after, data.norm).is_err(), "{op:?}, {dtype:?}");
                for record in records {
                    op.check_record(&record, data.norm).unwrap();
                    let spoils: [fn(&mut ClipRecord); 3] = [
                        |record| record.total_norm *= 1.000_01,
                        |record| record.clip_coef *= 0.999,
                        |record| record.total_norm = f32::NAN,
                    ];
                    for spoil in spoils {
                        let mut wrong = record;
                        spoil(&mut wrong);
                        assert!(op.check_record(&wrong, data.norm).is_err(), "{op:?}: {wrong:?}");
                    }
                }
            }
        }
    }
}
