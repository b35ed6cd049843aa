//! `StepCounts`: counts over the steps of a training run.

use bytemuck::{Pod, Zeroable};

use crate::{ClipRecord, Error};

/// Counts over steps of how often clipping engaged, for one group or for one gradient that is clipped on its own.
///
/// A plan whose clip [counts steps](crate::Clip::count_steps) keeps them on the device;
/// [`cpu::ClipPlan`](crate::cpu::ClipPlan) keeps them always. For records that come from elsewhere, [`add`](Self::add)
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
/// assert_eq!(counts, StepCounts { steps: 4, clipped: 3, non_finite: 1, largest_norm: 3.0 });
/// # Ok::<(), gradclip::Error>(())
/// ```
///
/// On the device it is 16 bytes, four little-endian words in the order of the fields.
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
    /// The largest finite norm.
    pub largest_norm: f32,
}

impl StepCounts {
    /// Counts one step.
    pub const fn add(&mut self, record: &ClipRecord) {
        self.steps = self.steps.wrapping_add(1);
        self.clipped = self.clipped.wrapping_add(record.clipped() as u32);
        self.non_finite = self.non_finite.wrapping_add(record.non_finite() as u32);
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
