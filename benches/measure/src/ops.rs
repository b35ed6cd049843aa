//! What is done to gradients.

use anyhow::{Result, bail, ensure};
use bytemuck::Pod;
use gradclip::{Clip, ClipRecord, DType, reference};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::data::PIECE;

/// What is done to gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Measures the global norm.
    Norm,
    /// Clips to twice the norm, so that nothing changes.
    NotExceeded,
    /// Clips to half of the norm.
    Exceeded,
    /// Measures the norm and the coefficient, and leaves the gradients.
    CoefficientOnly,
    /// Clamps every element.
    Clamp,
    /// Clips to half of the norm, and removes a loss scale.
    LossScale,
}

/// The parts of the gradients' norm that limits are, so that one is exceeded and the other is not.
const HALF: f64 = 0.5;
const TWICE: f64 = 2.0;
/// Half of the elements, which are spread evenly over -1 to 1, are beyond it.
pub(crate) const CLIP_VALUE: f32 = 0.5;
/// Small enough that gradients in f16 stay normal numbers.
const LOSS_SCALE: f32 = 8.0;

impl Op {
    /// All operations.
    pub const ALL: [Self; 6] =
        [Self::Norm, Self::NotExceeded, Self::Exceeded, Self::CoefficientOnly, Self::Clamp, Self::LossScale];

    /// Returns the name that rows show.
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

    /// Returns how often all gradients have to be read, and how often read and written back, at least.
    pub const fn passes(self) -> (usize, usize) {
        match self {
            Self::Norm | Self::NotExceeded | Self::CoefficientOnly => (1, 0),
            Self::Exceeded | Self::LossScale => (1, 1),
            Self::Clamp => (0, 1),
        }
    }

    /// The fewest bytes that have to move.
    pub(crate) const fn bytes(self, gradients: usize) -> usize {
        let (read, rewritten) = self.passes();
        gradients * (read + 2 * rewritten)
    }

    /// Whether the gradients are other ones afterwards.
    pub(crate) const fn changes(self) -> bool {
        self.passes().1 > 0
    }

    /// Returns the clip of gradients of this norm.
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

    /// The limit of a clip of gradients of this norm that writes nothing.
    pub(crate) const fn limit(norm: f64) -> f32 {
        limit(norm * HALF)
    }

    /// What an element is to become where the gradients have this norm.
    fn element(self, before: f64, norm: f64) -> f64 {
        let scale = f64::from(LOSS_SCALE);
        match self {
            Self::Norm | Self::NotExceeded | Self::CoefficientOnly => before,
            Self::Exceeded => before * reference::clip_coef(norm, norm * HALF),
            Self::Clamp => before.clamp((-CLIP_VALUE).into(), CLIP_VALUE.into()),
            Self::LossScale => before / scale * reference::clip_coef(norm / scale, norm / scale * HALF),
        }
    }

    /// Fails if a record of gradients of this norm is wrong.
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

    /// Fails if gradients of this norm have become something else than they should. Both are bytes of elements.
    pub(crate) fn check_elements(self, dtype: DType, before: &[u8], after: &[u8], norm: f64) -> Result<()> {
        ensure!(
            before.len() == after.len(),
            "{}: {} bytes became {}",
            self.name(),
            before.len(),
            after.len()
        );
        if !self.changes() {
            ensure!(before == after, "{}: gradients that should stay as they are were written", self.name());
            return Ok(());
        }
        // A unit in the last place each, and of the least subnormal number of f16.
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
                bail!("{}: an element became {after}, but it should be {expected}", self.name())
            }
        }
    }
}

/// A limit as the paths take it.
#[expect(clippy::cast_possible_truncation, reason = "the limits of the API are f32")]
const fn limit(norm: f64) -> f32 {
    norm as f32
}

fn is_close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() <= tolerance * expected.abs()
}

/// An element that became something else than expected, and what was expected.
fn first_wrong<T: Pod + Into<f64>>(
    before: &[u8],
    after: &[u8],
    expected: impl Fn(f64) -> f64 + Sync,
    tolerance: impl Fn(f64) -> f64 + Sync,
) -> Option<(f64, f64)> {
    let pieces = before.par_chunks(PIECE).zip(after.par_chunks(PIECE));
    pieces.find_map_any(|(before, after)| {
        let elements = bytemuck::cast_slice::<_, T>(before).iter().zip(bytemuck::cast_slice::<_, T>(after));
        let mut pairs = elements.map(|(&before, &after)| (after.into(), expected(before.into())));
        let is_right = |after: f64, expected: f64| (after - expected).abs() <= tolerance(expected);
        // A NaN is not right.
        pairs.find(|&(after, expected)| !is_right(after, expected))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{AlignedBytes, SetData, gradients};
    use crate::sets::GradientSet;
    use gradclip::cpu;

    /// What is right passes, and one wrong element or number does not.
    #[test]
    fn checks_find_what_is_wrong() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let set = GradientSet::new("any", dtype, vec![1000]);
            let data = SetData::new(&set);
            let range = data.ranges[0].clone();
            let before = &data.bytes()[range.clone()];
            for op in Op::ALL {
                let mut memory = AlignedBytes::zeroed(data.bytes().len());
                memory.bytes_mut().copy_from_slice(data.bytes());
                let mut list = gradients(dtype, &data.ranges, memory.bytes_mut());
                let records = cpu::clip_all(&mut list, op.clip(data.norm)).unwrap();
                let after = &mut memory.bytes_mut()[range.clone()];
                op.check_elements(dtype, before, after, data.norm).unwrap();
                // The exponent of an element in the middle.
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
