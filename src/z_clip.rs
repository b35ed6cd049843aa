//! A limit that follows the norms of past steps, by their mean and deviation.

use bytemuck::{Pod, Zeroable};

use crate::Error;
use crate::float_state::in_default_modes;

/// How a limit adapts to the norms of past steps: a norm that exceeds their mean by too many deviations is a spike, and is
/// clipped the harder the more of a spike it is.
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
/// Pre-Training", 2025, arXiv:2504.02507), with its defaults. The first `warm_up` steps do not limit; after them mean and
/// deviation are those of these steps. In three things it differs: nothing is added to the deviation before it divides, so
/// that the scale of the gradients does not matter; a norm that is not finite leaves the history as it is; and a warm-up whose
/// norms were all 0 starts again.
///
/// Set it with [`Clip::z_clip`](crate::Clip::z_clip). It decides where the gradients are, on the device if they are
/// there, and asks no host; the host may read its [`NormHistory`], save it, and restore it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ZClip {
    /// α, how much of mean and deviation is kept from step to step; from 0 to less than 1.
    pub alpha: f32,
    /// How many deviations above the mean are too many; positive.
    pub z_threshold: f32,
    /// How many steps only measure; at least 1.
    pub warm_up: u32,
}

impl Default for ZClip {
    /// α 0.97, threshold 2.5, 25 steps, as in the paper.
    fn default() -> Self {
        Self { alpha: 0.97, z_threshold: 2.5, warm_up: 25 }
    }
}

/// What a [`ZClip`] remembers of past norms: its whole state.
///
/// On the device it is 12 bytes, three little-endian words in the order of the fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct NormHistory {
    /// How many norms it has seen, up to the end of the warm-up.
    pub steps: u32,
    /// Their mean.
    pub mean: f32,
    /// Their standard deviation σ.
    pub deviation: f32,
}

impl ZClip {
    pub(crate) fn checked(self) -> Result<Self, Error> {
        let is_good = (0.0..1.0).contains(&self.alpha)
            && self.z_threshold > 0.0
            && self.z_threshold.is_finite()
            && self.warm_up > 0;
        if is_good { Ok(self) } else { Err(Error::ZClip { given: self }) }
    }

    /// The limit for this norm, if it is a spike; and in any case the history with this norm in it. It is what
    /// [`cpu::ClipPlan`](crate::cpu::ClipPlan) and the device do at every step.
    ///
    /// ```
    /// use gradclip::{NormHistory, ZClip};
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

    /// The same for a norm that may exceed f32. A history cannot hold such a one, only a limit of it: without one it stays as it
    /// is.
    #[expect(clippy::cast_possible_truncation, reason = "what is between f32 numbers is in their range")]
    pub(crate) fn limit_of(&self, history: &mut NormHistory, norm: f64) -> Option<f32> {
        if !norm.is_finite() {
            return None;
        }
        if history.mean == 0.0 && history.steps >= self.warm_up {
            // Norms of 0 say nothing of the next one, and a limit of 0 would last for ever.
            history.steps = 0;
        }
        let [mean, deviation] = [history.mean, history.deviation].map(f64::from);
        let most = f64::from(self.z_threshold) * deviation;
        let above = norm - mean;
        let limit =
            (history.steps >= self.warm_up && above > most).then(|| (mean + most * (most / above)) as f32);
        let counted = limit.unwrap_or(norm as f32);
        if counted.is_infinite() {
            return None;
        }

        let distance = f64::from(counted) - mean;
        let (rate, share) = if history.steps < self.warm_up {
            history.steps += 1;
            // Mean and deviation of all so far.
            (f64::from(history.steps).recip(), 1.0)
        } else {
            (1.0 - f64::from(self.alpha), f64::from(self.alpha))
        };
        // From the nearer end: what is left of a mean may be little, and its rounding more than the norm.
        let next =
            if rate > 0.5 { f64::from(counted) - (1.0 - rate) * distance } else { mean + rate * distance };
        history.mean = next as f32;
        let variance = (1.0 - rate) * (deviation * deviation + rate * share * distance * distance);
        history.deviation = variance.sqrt() as f32;
        limit
    }
}

impl NormHistory {
    /// That it is one that can come about.
    pub(crate) fn checked(&self, record: usize) -> Result<(), Error> {
        let is_good = [self.mean, self.deviation].iter().all(|x| x.is_finite() && *x >= 0.0);
        if is_good { Ok(()) } else { Err(Error::History { record, given: *self }) }
    }
}
