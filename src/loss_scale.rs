//! A dynamic loss scale for mixed-precision training.

use bytemuck::{Pod, Zeroable};

use crate::operation::inverse_scale;
use crate::{ClipRecord, Error};

/// The WGSL declaration of [`LossScaleState`], `struct LossScale`, for a shader that binds
/// [`ClipPlan::loss_scale_buffer`](crate::ClipPlan::loss_scale_buffer) and multiplies the loss by `scale`.
pub const LOSS_SCALE_WGSL: &str = include_str!("../shaders/lib/loss_scale.wgsl");

/// A loss scale that grows while gradients stay finite and shrinks when they do not: the state of
/// `torch.amp.GradScaler`, with its rule and its defaults.
///
/// Multiply the loss by [`scale`](Self::scale), clip with [`Clip::loss_scale`](crate::Clip::loss_scale) (or
/// [`ClipPlan::set_loss_scale`](crate::ClipPlan::set_loss_scale)) and [`NonFinite::Skip`](crate::NonFinite::Skip), and
/// pass the record of each step to [`update`](Self::update), at once or some steps later. With
/// [`Clip::dynamic_loss_scale`](crate::Clip::dynamic_loss_scale) a plan does all of this on the device, without the host.
///
/// ```text
/// not finite                   scale = max(scale · backoff, floor),  good steps = 0
/// finite                       good steps += 1
/// good steps = interval        scale = scale · growth,               good steps = 0
/// ```
///
/// ```
/// use gradclip::cpu::{self, Gradient};
/// use gradclip::loss_scale::{LossScale, ScaleUpdate};
/// use gradclip::{Clip, NonFinite};
///
/// let mut loss_scale = LossScale::new(1024.0)?.growth(2.0, 1)?;
/// let clip = |scale: &LossScale| Clip::by_global_norm(1.0).loss_scale(scale.scale()).non_finite(NonFinite::Skip);
///
/// let overflowed = cpu::clip(&mut [Gradient::f32(&mut [f32::INFINITY])], clip(&loss_scale))?[0];
/// assert!(overflowed.skip());
/// assert_eq!(loss_scale.update(&overflowed), ScaleUpdate::Shrunk);
/// assert_eq!(loss_scale.scale(), 512.0);
///
/// let good = cpu::clip(&mut [Gradient::f32(&mut [300.0])], clip(&loss_scale))?[0];
/// assert_eq!(loss_scale.update(&good), ScaleUpdate::Grown);
/// assert_eq!(loss_scale.scale(), 1024.0);
///
/// // The complete state, as 24 bytes of plain data for a checkpoint.
/// let saved = loss_scale.state();
/// assert_eq!(LossScale::from_state(saved)?, loss_scale);
/// # Ok::<(), gradclip::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "LossScaleState", into = "LossScaleState"))]
pub struct LossScale(LossScaleState);

/// The complete state of a [`LossScale`], to save in a checkpoint and to [restore](LossScale::from_state).
///
/// It is plain data of 24 bytes: six words in the order of the fields, without padding, in Rust and on the device;
/// [`LOSS_SCALE_WGSL`] declares it.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct LossScaleState {
    /// The factor to multiply the loss by.
    pub scale: f32,
    /// The factor by which the scale grows.
    pub growth: f32,
    /// The factor by which the scale shrinks.
    pub backoff: f32,
    /// The least scale.
    pub floor: f32,
    /// The number of good steps after which the scale grows.
    pub interval: u32,
    /// The number of good steps since the scale last changed.
    pub good_steps: u32,
}

/// The effect of a step on a [`LossScale`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleUpdate {
    /// The gradients were finite, and the scale is unchanged.
    Kept,
    /// The gradients were finite for `interval` steps in a row, and the scale has grown.
    Grown,
    /// The gradients overflowed, and the scale has shrunk.
    Shrunk,
    /// The gradients overflowed, and the scale is at its floor. If this happens at many steps, the scale is not the cause:
    /// stop the training and look for another cause.
    AtFloor,
}

impl ScaleUpdate {
    /// Returns whether the gradients were not finite, so that the step must be skipped.
    #[must_use]
    pub const fn overflowed(self) -> bool {
        matches!(self, Self::Shrunk | Self::AtFloor)
    }
}

impl Default for LossScale {
    /// 65536, doubled after 2000 good steps, halved after a bad one, down to [`f32::MIN_POSITIVE`].
    fn default() -> Self {
        Self(LossScaleState {
            scale: 65536.0,
            growth: 2.0,
            backoff: 0.5,
            floor: f32::MIN_POSITIVE,
            interval: 2000,
            good_steps: 0,
        })
    }
}

impl TryFrom<LossScaleState> for LossScale {
    type Error = Error;

    fn try_from(state: LossScaleState) -> Result<Self, Error> {
        Self::from_state(state)
    }
}

impl From<LossScale> for LossScaleState {
    fn from(scale: LossScale) -> Self {
        scale.0
    }
}

impl Default for LossScaleState {
    /// The state of [`LossScale::default`].
    fn default() -> Self {
        LossScale::default().0
    }
}

impl LossScale {
    /// Starts from `scale`, with the other options of the default.
    ///
    /// # Errors
    ///
    /// [`Error::LossScale`] if the scale or its inverse is not positive and finite.
    pub fn new(scale: f32) -> Result<Self, Error> {
        let default = Self::default().0;
        Self::from_state(LossScaleState { scale, floor: default.floor.min(scale), ..default })
    }

    /// Sets the factor by which the scale grows after `interval` good steps.
    ///
    /// # Errors
    ///
    /// [`Error::LossScaleOption`] if `factor` is less than 1 or not finite, or `interval` is 0.
    pub fn growth(self, factor: f32, interval: u32) -> Result<Self, Error> {
        Self::from_state(LossScaleState { growth: factor, interval, ..self.0 })
    }

    /// Sets the factor by which the scale shrinks after a step whose gradients are not finite.
    ///
    /// # Errors
    ///
    /// [`Error::LossScaleOption`] if `factor` is not between 0 and 1.
    pub fn backoff(self, factor: f32) -> Result<Self, Error> {
        Self::from_state(LossScaleState { backoff: factor, ..self.0 })
    }

    /// Sets the least scale. The scale never shrinks below it; [`update`](Self::update) returns [`ScaleUpdate::AtFloor`]
    /// when it is reached.
    ///
    /// The default is [`f32::MIN_POSITIVE`], since `GradScaler` has no floor. Choose 1 if the gradients do not underflow
    /// without a loss scale.
    ///
    /// # Errors
    ///
    /// [`Error::LossScaleOption`] if `floor` or its inverse is not positive and finite, or if `floor` is above the scale.
    pub fn floor(self, floor: f32) -> Result<Self, Error> {
        Self::from_state(LossScaleState { floor, ..self.0 })
    }

    /// Restores a saved state.
    ///
    /// # Errors
    ///
    /// [`Error::LossScale`] and [`Error::LossScaleOption`], as for [`new`](Self::new) and the methods that set options.
    pub fn from_state(state: LossScaleState) -> Result<Self, Error> {
        let LossScaleState { scale, growth, backoff, floor, interval, good_steps: _ } = state;
        inverse_scale(scale)?;
        let refuse = |option, given, allowed| Err(Error::LossScaleOption { option, given, allowed });
        if !(growth >= 1.0 && growth.is_finite()) {
            return refuse("growth factor", growth, "a finite number of at least 1");
        }
        if !(backoff > 0.0 && backoff < 1.0) {
            return refuse("backoff factor", backoff, "above 0 and below 1");
        }
        if inverse_scale(floor).is_err() || floor > scale {
            return refuse("floor", floor, "positive, with a finite inverse, and at most the scale");
        }
        if interval == 0 {
            return refuse("growth interval", 0.0, "at least 1 step");
        }
        Ok(Self(state))
    }

    /// Returns the complete state, to save in a checkpoint.
    #[must_use]
    pub const fn state(&self) -> LossScaleState {
        self.0
    }

    /// Returns the factor to multiply the loss by.
    #[must_use]
    pub const fn scale(&self) -> f32 {
        self.0.scale
    }

    /// Returns the number of good steps since the scale last changed.
    #[must_use]
    pub const fn good_steps(&self) -> u32 {
        self.0.good_steps
    }

    /// Updates the scale after a step that has one record. For several records, call [`update_all`](Self::update_all).
    pub fn update(&mut self, record: &ClipRecord) -> ScaleUpdate {
        self.update_all(std::slice::from_ref(record))
    }

    /// Updates the scale after one step with several records: one for each group, or for each gradient that is clipped by its
    /// own norm. The step is good if all of them are finite.
    ///
    /// A norm of finite elements that exceeds f32 does not shrink the scale, as in PyTorch.
    pub fn update_all(&mut self, records: &[ClipRecord]) -> ScaleUpdate {
        let state = &mut self.0;
        if !records.iter().all(is_finite) {
            state.good_steps = 0;
            state.scale = (state.scale * state.backoff).max(state.floor);
            return if state.scale > state.floor { ScaleUpdate::Shrunk } else { ScaleUpdate::AtFloor };
        }
        state.good_steps = state.good_steps.saturating_add(1);
        if state.good_steps < state.interval {
            return ScaleUpdate::Kept;
        }
        state.good_steps = 0;
        let grown = state.scale * state.growth;
        // An infinite scale would be invalid.
        if grown == state.scale || !grown.is_finite() {
            return ScaleUpdate::Kept;
        }
        state.scale = grown;
        ScaleUpdate::Grown
    }
}

/// Returns whether the gradients were finite. Their norm may exceed f32. False if the norm is unknown, as for a shard that
/// failed.
pub(crate) fn is_finite(record: &ClipRecord) -> bool {
    record.first_non_finite().is_none() && record.norm_significand.is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clip, cpu};

    fn record(gradient: f32) -> ClipRecord {
        cpu::clip_grad_norm(&mut [[gradient, 1.0]], 1.0).unwrap()
    }

    fn scale(scale: f32) -> LossScale {
        LossScale::new(scale).unwrap()
    }

    #[test]
    fn grows_after_an_interval_of_good_steps() {
        use ScaleUpdate::{Grown, Kept};
        let mut scale = scale(8.0).growth(4.0, 3).unwrap();
        let updates: Vec<_> = (0..7).map(|_| (scale.update(&record(1.0)), scale.scale())).collect();
        let expected = [
            (Kept, 8.0),
            (Kept, 8.0),
            (Grown, 32.0),
            (Kept, 32.0),
            (Kept, 32.0),
            (Grown, 128.0),
            (Kept, 128.0),
        ];
        assert_eq!(updates, expected);
    }

    #[test]
    fn shrinks_at_once_and_counts_anew() {
        let mut scale = scale(8.0).growth(2.0, 2).unwrap().backoff(0.25).unwrap();
        assert_eq!(scale.update(&record(1.0)), ScaleUpdate::Kept);
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(scale.update(&record(bad)), ScaleUpdate::Shrunk);
        }
        assert_eq!((scale.scale(), scale.good_steps()), (0.5, 0));
        assert_eq!(scale.update(&record(1.0)), ScaleUpdate::Kept);
        assert_eq!(scale.scale(), 0.5);
        assert_eq!(scale.update(&record(1.0)), ScaleUpdate::Grown);
        assert_eq!(scale.scale(), 1.0);
    }

    #[test]
    fn stays_finite() {
        let mut scale = scale(f32::MAX).growth(2.0, 1).unwrap();
        assert_eq!(scale.update(&record(1.0)), ScaleUpdate::Kept);
        assert_eq!(scale.scale(), f32::MAX);
    }

    #[test]
    fn a_norm_beyond_f32_is_a_good_step() {
        let mut gradient = [f32::MAX; 4];
        let record = cpu::clip_grad_norm(&mut [&mut gradient], 1.0).unwrap();
        assert_eq!(record.total_norm, f32::INFINITY);
        assert_eq!(LossScale::default().update(&record), ScaleUpdate::Kept);
    }

    /// A shard whose device was lost, or whose overflow is known by its norm only.
    #[test]
    fn a_norm_that_is_not_known_is_a_bad_step() {
        assert!(LossScale::default().update(&ClipRecord::FAILED).overflowed());
    }

    #[test]
    fn several_records_are_one_step() {
        let mut scale = scale(8.0).growth(2.0, 2).unwrap();
        let (good, bad) = (record(1.0), record(f32::NAN));
        assert_eq!(scale.update_all(&[good, good, good]), ScaleUpdate::Kept);
        assert_eq!(scale.update_all(&[bad, good, bad]), ScaleUpdate::Shrunk);
        assert_eq!((scale.scale(), scale.good_steps()), (4.0, 0));
        assert_eq!(scale.update_all(&[]), ScaleUpdate::Kept);
        assert_eq!(scale.update_all(&[]), ScaleUpdate::Grown);
    }

    /// The next clip accepts the scale, however many steps overflow.
    #[test]
    fn never_falls_below_its_floor() {
        let bad = record(f32::NAN);
        for (start, backoff, floor) in
            [(65536.0, 0.5, None), (1e-38, 1e-30, None), (3e-39, 0.5, None), (8.0, 0.3, Some(1.0))]
        {
            let mut scale = scale(start).backoff(backoff).unwrap();
            if let Some(floor) = floor {
                scale = scale.floor(floor).unwrap();
            }
            let floor = scale.state().floor;
            let mut updates = Vec::new();
            for _ in 0..300 {
                updates.push(scale.update(&bad));
                Clip::by_global_norm(1.0).loss_scale(scale.scale()).checked().unwrap();
                assert_eq!(updates.last() == Some(&ScaleUpdate::AtFloor), scale.scale() == floor);
            }
            assert_eq!(scale.scale(), floor);
            assert!(updates.is_sorted_by_key(|update| *update == ScaleUpdate::AtFloor));
        }
    }

    #[test]
    fn goes_on_from_what_was_saved() {
        let mut scale = scale(4096.0).growth(3.0, 5).unwrap().backoff(0.25).unwrap().floor(2.0).unwrap();
        for gradient in [1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0] {
            scale.update(&record(gradient));
        }
        let bytes = bytemuck::bytes_of(&scale.state()).to_vec();
        let mut restored = LossScale::from_state(bytemuck::pod_read_unaligned(&bytes)).unwrap();
        assert_eq!(restored.good_steps(), 3);
        for gradient in [1.0, 1.0, f32::INFINITY, f32::NAN, 1.0] {
            assert_eq!(restored.update(&record(gradient)), scale.update(&record(gradient)));
            assert_eq!(restored, scale);
        }
    }

    #[test]
    fn options_that_make_no_sense_are_errors() {
        let option = |result: Result<LossScale, Error>| match result {
            Err(Error::LossScaleOption { option, .. }) => option,
            other => panic!("{other:?}"),
        };
        let scale = scale(8.0);
        for growth in [0.5, -2.0, f32::NAN, f32::INFINITY] {
            assert_eq!(option(scale.growth(growth, 10)), "growth factor");
        }
        assert_eq!(option(scale.growth(2.0, 0)), "growth interval");
        for backoff in [0.0, 1.0, -0.5, 2.0, f32::NAN] {
            assert_eq!(option(scale.backoff(backoff)), "backoff factor");
        }
        for floor in [0.0, -1.0, 1e-40, 9.0, f32::NAN, f32::INFINITY] {
            assert_eq!(option(scale.floor(floor)), "floor");
        }
        for given in [0.0, -1.0, 1e-40, f32::INFINITY] {
            assert_eq!(LossScale::new(given), Err(Error::LossScale { given }));
        }
        assert!(LossScale::new(f32::NAN).is_err());
        let damaged = LossScaleState { floor: 16.0, ..scale.state() };
        assert_eq!(option(LossScale::from_state(damaged)), "floor");
        assert!(scale.growth(1.0, u32::MAX).is_ok());
    }
}
