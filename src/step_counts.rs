//! `StepCounts`: counts over the steps of a training run.

use bytemuck::{Pod, Zeroable};

use crate::{ClipRecord, Error};

/// The WGSL declaration of [`StepCounts`], for a shader that binds
/// [`ClipPlan::step_counts_buffer`](crate::ClipPlan::step_counts_buffer). It also declares `step_counts_taken`, which returns the
/// number of steps that the optimizer has taken, including the current one unless it is skipped.
pub const STEP_COUNTS_WGSL: &str = include_str!("../shaders/lib/step_counts.wgsl");

/// Counts over steps of how often clipping engaged, for one group or for one gradient that is clipped on its own.
///
/// A plan keeps them on the device if its clip has [`count_steps`](crate::Clip::count_steps),
/// [`skip_above`](crate::Clip::skip_above) or [`dynamic_loss_scale`](crate::Clip::dynamic_loss_scale);
/// [`cpu::ClipPlan`](crate::cpu::ClipPlan) always keeps them. For records that come from elsewhere, [`add`](Self::add)
/// counts them.
///
/// ```
/// use gradclip::{cpu, stats::StepCounts};
///
/// let mut counts = StepCounts::default();
/// for gradient in [0.5, 3.0, f32::NAN, 2.0] {
///     let record = cpu::clip_grad_norm(&mut [[gradient]], 1.0)?;
///     counts.add(&record);
/// }
/// assert_eq!((counts.steps, counts.clipped, counts.non_finite, counts.largest_norm), (4, 3, 1, 3.0));
/// assert_eq!(counts.taken(), 4); // the default policy skips none
/// # Ok::<(), gradclip::Error>(())
/// ```
///
/// On the device it is 24 bytes, six little-endian words in the order of the fields; [`STEP_COUNTS_WGSL`] declares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct StepCounts {
    /// The number of norms that were measured or supplied.
    pub steps: u32,
    /// The number of steps whose coefficient differed from 1: [`ClipRecord::clipped`].
    pub clipped: u32,
    /// The number of steps whose gradients were not finite: [`ClipRecord::non_finite`].
    pub non_finite: u32,
    /// The number of steps that were skipped: [`ClipRecord::skip`].
    pub skipped: u32,
    /// The number of steps in a row that [`skip_above`](crate::Clip::skip_above) skipped. Non-finite steps do not change it.
    pub consecutive_skips: u32,
    /// The largest finite norm.
    pub largest_norm: f32,
}

impl StepCounts {
    /// Returns the number of steps that were not skipped: the steps that the optimizer has taken, for Adam's bias correction.
    #[must_use]
    pub const fn taken(&self) -> u32 {
        self.steps.wrapping_sub(self.skipped)
    }

    /// Counts one step. Only a plan updates [`consecutive_skips`](Self::consecutive_skips).
    pub const fn add(&mut self, record: &ClipRecord) {
        self.steps = self.steps.wrapping_add(1);
        self.clipped = self.clipped.wrapping_add(record.clipped() as u32);
        self.non_finite = self.non_finite.wrapping_add(record.non_finite() as u32);
        self.skipped = self.skipped.wrapping_add(record.skip() as u32);
        if record.total_norm.is_finite() {
            self.largest_norm = self.largest_norm.max(record.total_norm);
        }
    }

    /// Validates restored counts. The other numbers wrap, so that every value is valid.
    pub(crate) fn checked(&self, record: usize) -> Result<(), Error> {
        let is_valid = self.largest_norm.is_finite() && self.largest_norm >= 0.0;
        if is_valid { Ok(()) } else { Err(Error::StepCounts { record, given: *self }) }
    }
}
