//! The loss scale of mixed-precision training, as it changes from step to step.

use crate::ClipRecord;

/// A loss scale that grows while gradients stay finite and shrinks when they do not: the state of
/// `torch.amp.GradScaler`, with its rule and its defaults.
///
/// Multiply the loss by [`scale`](Self::scale), clip with [`Clip::loss_scale`](crate::Clip::loss_scale) (or
/// [`ClipPlan::set_loss_scale`](crate::ClipPlan::set_loss_scale)) and [`NonFinite::Skip`](crate::NonFinite::Skip), and
/// hand the record of the step to [`update`](Self::update), then or some steps later.
///
/// ```text
/// not finite                   scale = scale · backoff,  good steps = 0
/// finite                       good steps += 1
/// good steps = interval        scale = scale · growth,   good steps = 0
/// ```
///
/// ```
/// use gradclip::{Clip, LossScale, NonFinite, cpu};
///
/// let mut loss_scale = LossScale::new(1024.0).growth(2.0, 1);
/// let clip = |scale: &LossScale| Clip::by_global_norm(1.0).loss_scale(scale.scale()).non_finite(NonFinite::Skip);
///
/// let overflowed = cpu::clip(&mut [&mut [f32::INFINITY]], clip(&loss_scale))?.unwrap();
/// assert!(overflowed.skip() && !loss_scale.update(&overflowed));
/// assert_eq!(loss_scale.scale(), 512.0);
///
/// let good = cpu::clip(&mut [&mut [300.0]], clip(&loss_scale))?.unwrap();
/// assert!(loss_scale.update(&good));
/// assert_eq!(loss_scale.scale(), 1024.0);
/// # Ok::<(), gradclip::Error>(())
/// ```
///
/// It is plain data: copy it to save it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    scale: f32,
    growth: f32,
    backoff: f32,
    interval: u32,
    good_steps: u32,
}

impl Default for LossScale {
    /// 65536, doubled after 2000 good steps, halved after a bad one.
    fn default() -> Self {
        Self::new(65536.0)
    }
}

impl LossScale {
    /// Begins with this scale; otherwise as the default.
    #[must_use]
    pub const fn new(scale: f32) -> Self {
        Self { scale, growth: 2.0, backoff: 0.5, interval: 2000, good_steps: 0 }
    }

    /// The factor by which the scale grows after so many good steps.
    #[must_use]
    pub const fn growth(self, factor: f32, interval: u32) -> Self {
        Self { growth: factor, interval, ..self }
    }

    /// The factor by which the scale shrinks after a step whose gradients are not finite.
    #[must_use]
    pub const fn backoff(self, factor: f32) -> Self {
        Self { backoff: factor, ..self }
    }

    /// What to multiply the loss by.
    #[must_use]
    pub const fn scale(&self) -> f32 {
        self.scale
    }

    /// How many steps have been good since the scale last changed.
    #[must_use]
    pub const fn good_steps(&self) -> u32 {
        self.good_steps
    }

    /// Takes note of a step. Returns whether its gradients were finite, so that the step counts.
    ///
    /// A norm that exceeds f32 while every element is finite is no reason to shrink, as for PyTorch.
    pub fn update(&mut self, record: &ClipRecord) -> bool {
        let good = record.first_non_finite().is_none();
        self.good_steps = if good { self.good_steps + 1 } else { 0 };
        if !good {
            self.scale *= self.backoff;
        } else if self.good_steps >= self.interval {
            // A scale that is not finite is of no use.
            let grown = self.scale * self.growth;
            self.scale = if grown.is_finite() { grown } else { self.scale };
            self.good_steps = 0;
        }
        good
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clip, cpu};

    fn record(gradient: f32) -> ClipRecord {
        cpu::clip(&mut [&mut [gradient, 1.0]], Clip::by_global_norm(1.0)).unwrap().unwrap()
    }

    #[test]
    fn grows_after_an_interval_of_good_steps() {
        let mut scale = LossScale::new(8.0).growth(4.0, 3);
        let scales: Vec<f32> = (0..7).map(|_| (scale.update(&record(1.0)), scale.scale()).1).collect();
        assert_eq!(scales, [8.0, 8.0, 32.0, 32.0, 32.0, 128.0, 128.0]);
    }

    #[test]
    fn shrinks_at_once_and_counts_anew() {
        let mut scale = LossScale::new(8.0).growth(2.0, 2).backoff(0.25);
        assert!(scale.update(&record(1.0)));
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(!scale.update(&record(bad)));
        }
        assert_eq!((scale.scale(), scale.good_steps()), (0.5, 0));
        assert!(scale.update(&record(1.0)));
        assert_eq!(scale.scale(), 0.5);
        assert!(scale.update(&record(1.0)));
        assert_eq!(scale.scale(), 1.0);
    }

    #[test]
    fn stays_finite() {
        let mut scale = LossScale::new(f32::MAX).growth(2.0, 1);
        assert!(scale.update(&record(1.0)));
        assert_eq!(scale.scale(), f32::MAX);
    }

    #[test]
    fn a_norm_beyond_f32_is_a_good_step() {
        let mut gradient = [f32::MAX; 4];
        let record = cpu::clip(&mut [&mut gradient], Clip::by_global_norm(1.0)).unwrap().unwrap();
        assert!(record.total_norm.is_infinite() && LossScale::default().update(&record));
    }
}
