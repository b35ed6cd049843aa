//! `ZClip`: a limit that follows the mean and the deviation of past norms.

use bytemuck::{Pod, Zeroable};

use crate::Error;
use crate::float_modes::in_default_modes;

/// The options of a limit that follows the norms of past steps. A norm that exceeds their mean by more than `z_threshold`
/// deviations is a spike; the larger the spike, the lower its limit.
///
/// ```text
/// z      = (norm - mean) / deviation
/// limit  = mean + z_threshold² / z · deviation      where z > z_threshold; else there is none
/// norm'  = min(norm, limit)
/// mean   = α · mean + (1 - α) · norm'
/// σ²     = α · σ² + (1 - α) · (norm' - mean)²       with the new mean
/// ```
///
/// It is ZClip with adaptive scaling (Kumar, Owen, Chowdhury and Güra, "ZClip: Adaptive Spike Mitigation for LLM
/// Pre-Training", 2025, arXiv:2504.02507), with its defaults. The first `warm_up` steps have no limit; they give the initial mean
/// and deviation. It differs from the paper in three ways: nothing is added to the deviation before the division, so that it
/// works at any scale of the gradients; a non-finite norm does not change the history; and a warm-up whose norms were all 0
/// starts again.
///
/// Set it with [`Clip::z_clip`](crate::Clip::z_clip). The limit is computed where the gradients are, on the device without a host
/// stall or on the CPU. The host can read the [`NormHistory`], save it and restore it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct ZClip {
    /// The weight α of the old mean and deviation in the new ones; in `[0, 1)`.
    pub alpha: f32,
    /// The number of deviations above the mean from which a norm is a spike; positive and finite.
    pub z_threshold: f32,
    /// The number of steps without a limit, which give the initial mean and deviation; at least 1.
    pub warm_up: u32,
}

impl Default for ZClip {
    /// α 0.97, threshold 2.5, 25 steps, as in the paper.
    fn default() -> Self {
        Self { alpha: 0.97, z_threshold: 2.5, warm_up: 25 }
    }
}

/// The complete state of a [`ZClip`]: the mean and deviation of past norms.
///
/// On the device it is 12 bytes, three little-endian words in the order of the fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct NormHistory {
    /// The number of norms added so far, at most `warm_up`.
    pub steps: u32,
    /// The mean of the norms.
    pub mean: f32,
    /// The standard deviation σ of the norms.
    pub deviation: f32,
}

impl ZClip {
    pub(crate) fn checked(self) -> Result<Self, Error> {
        let is_valid = (0.0..1.0).contains(&self.alpha)
            && self.z_threshold > 0.0
            && self.z_threshold.is_finite()
            && self.warm_up > 0;
        if is_valid { Ok(self) } else { Err(Error::ZClip { given: self }) }
    }

    /// Adds `norm` to `history`, and returns the limit for it if it is a spike. [`cpu::ClipPlan`](crate::cpu::ClipPlan) and the
    /// device do the same at every step.
    ///
    /// ```
    /// use gradclip::{ZClip, stats::NormHistory};
    ///
    /// let z_clip = ZClip { warm_up: 4, ..ZClip::default() };
    /// let mut history = NormHistory::default();
    /// for norm in [1.0, 2.0, 1.0, 2.0] {
    ///     assert_eq!(z_clip.limit(&mut history, norm), None);
    /// }
    /// assert_eq!(history, NormHistory { steps: 4, mean: 1.5, deviation: 0.5 });
    /// // Seventeen deviations above the mean: the limit is 1.5 + 2.5² / 17 · 0.5.
    /// assert!((z_clip.limit(&mut history, 10.0).unwrap() - 1.68382).abs() < 1e-5);
    /// ```
    pub fn limit(&self, history: &mut NormHistory, norm: f32) -> Option<f32> {
        in_default_modes(|| self.limit_of(history, norm.into()))
    }

    /// [`limit`](Self::limit) for a norm that may exceed f32. If there is no limit for such a norm, the history does not change,
    /// because it cannot hold the norm.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a value between two f32 numbers is in the range of f32"
    )]
    pub(crate) fn limit_of(&self, history: &mut NormHistory, norm: f64) -> Option<f32> {
        if !norm.is_finite() {
            return None;
        }
        if history.mean == 0.0 && history.steps >= self.warm_up {
            // A mean of 0 would give a limit of 0, and then never change.
            history.steps = 0;
        }
        let [mean, deviation] = [history.mean, history.deviation].map(f64::from);
        let threshold = f64::from(self.z_threshold) * deviation;
        let above = norm - mean;
        let limit = (history.steps >= self.warm_up && above > threshold)
            .then(|| (mean + threshold * (threshold / above)) as f32);
        let counted = limit.unwrap_or(norm as f32);
        if counted.is_infinite() {
            return None;
        }

        let distance = f64::from(counted) - mean;
        let (rate, share) = if history.steps < self.warm_up {
            history.steps += 1;
            // During warm-up: the mean and deviation of all norms so far.
            (f64::from(history.steps).recip(), 1.0)
        } else {
            (1.0 - f64::from(self.alpha), f64::from(self.alpha))
        };
        // Interpolates from the nearer end. From the other end, the rounding error of a large mean could exceed the norm.
        let next =
            if rate > 0.5 { f64::from(counted) - (1.0 - rate) * distance } else { mean + rate * distance };
        history.mean = next as f32;
        let variance = (1.0 - rate) * (deviation * deviation + rate * share * distance * distance);
        history.deviation = variance.sqrt() as f32;
        limit
    }
}

impl NormHistory {
    /// Validates a restored history.
    pub(crate) fn checked(&self, record: usize) -> Result<(), Error> {
        let is_valid = [self.mean, self.deviation].iter().all(|x| x.is_finite() && *x >= 0.0);
        if is_valid { Ok(()) } else { Err(Error::NormHistory { record, given: *self }) }
    }
}
