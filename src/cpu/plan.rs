//! `ClipPlan`: clips on the CPU step after step, and keeps state between steps.

mod measurement;

use super::gradient::{self, Gradient};
use super::kernels::Change;
use super::parallel;
use super::records::{self, Basis};
use crate::clip::{self, ByNorm, Operation, Scope};
use crate::float_state::in_default_modes;
use crate::{Clip, ClipRecord, Error, NonFinite, NormHistory, StepCounts, TensorStats, record};
pub use measurement::{Measurement, scale};

/// Clips step after step on the CPU, and keeps step counts, norm histories and statistics between steps. Unlike the
/// [`ClipPlan`](crate::ClipPlan) of the GPU, it holds no gradients.
///
/// A clip without such state needs no plan: call [`clip_groups`](super::clip_groups).
///
/// ```
/// use gradclip::{Clip, cpu};
///
/// let mut plan = cpu::ClipPlan::new(&[Clip::by_global_norm(1.0).tensor_stats()])?;
/// for step in 0_u8..10 {
///     let (mut weight, mut bias) = ([0.25 * f32::from(step), 0.0], [0.5]);
///     plan.clip(&mut [cpu::Gradient::f32(&mut weight), cpu::Gradient::f32(&mut bias)])?;
/// }
/// assert_eq!(plan.step_counts()[0].clipped, 6);
/// assert_eq!((plan.tensor_stats()[0].zeros, plan.tensor_stats()[1].norm), (1, 0.5));
/// # Ok::<(), gradclip::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ClipPlan {
    operations: Vec<Operation>,
    /// One for each record, once there has been one.
    histories: Vec<NormHistory>,
    step_counts: Vec<StepCounts>,
    tensor_stats: Vec<TensorStats>,
}

impl ClipPlan {
    /// Creates a plan with one clip for each group of gradients.
    ///
    /// # Errors
    ///
    /// Those of [`Clip::checked`] for each clip; [`Error::GroupsDiffer`] if the clips differ in more than their limits;
    /// [`Error::NoClip`] if `clips` is empty.
    pub fn new(clips: &[Clip]) -> Result<Self, Error> {
        Ok(Self::of(Clip::checked_groups(clips)?))
    }

    /// Creates a plan from the checked clip of each group.
    pub(crate) fn of(operations: Vec<Operation>) -> Self {
        Self { operations, histories: Vec::new(), step_counts: Vec::new(), tensor_stats: Vec::new() }
    }

    /// Clips the gradients of a step in place, each with the clip of its [group](Gradient::group), and returns the records
    /// that [`clip_groups`](super::clip_groups) would.
    ///
    /// # Errors
    ///
    /// Those of [`clip_groups`](super::clip_groups); [`Error::StateCount`] if the number of records differs from that of the
    /// step before. All gradients are then untouched.
    pub fn clip(&mut self, gradients: &mut [Gradient<'_>]) -> Result<Vec<ClipRecord>, Error> {
        gradient::check(gradients, self.operations.len(), self.operations[0].needs_parameters())?;
        let norm = match self.operations[0] {
            Operation::Norm(norm) if norm.scope == Scope::Supplied => return Err(Error::NormNotSupplied),
            Operation::Norm(norm) => norm,
            Operation::Clamp { .. } => {
                self.change(gradients, &[]);
                return Ok(Vec::new());
            }
        };
        self.remember(records::count(gradients, norm.scope, self.operations.len()))?;
        let (bases, stats) = records::measure(gradients, &norm, &self.limits());
        self.tensor_stats = stats;
        self.finish(gradients, &norm, &bases)
    }

    /// [`clip`](Self::clip) for a [`Clip::by_supplied_norm`], with a norm that was measured elsewhere.
    ///
    /// # Errors
    ///
    /// Those of [`clip`](Self::clip); [`Error::UnexpectedNorm`] for any other clip.
    pub fn clip_with_norm(
        &mut self,
        gradients: &mut [Gradient<'_>],
        total_norm: f32,
    ) -> Result<Vec<ClipRecord>, Error> {
        let Operation::Norm(norm @ ByNorm { scope: Scope::Supplied, .. }) = self.operations[0] else {
            return Err(Error::UnexpectedNorm);
        };
        gradient::check(gradients, self.operations.len(), false)?;
        self.remember(self.operations.len())?;
        let scaled = in_default_modes(|| {
            // A zero has no sign here, and nothing negative is a norm.
            let total_norm = if total_norm < 0.0 { f32::NAN } else { total_norm.abs() };
            // `ClipRecord::new` undoes the loss scale.
            f64::from(total_norm) / f64::from(norm.inverse_norm_scale())
        });
        let measured =
            record::Measured { norm: scaled, max_magnitude: 0.0, first_non_finite: None, empty: false };
        let basis = |limit: f32| Basis { measured, limit: limit.into() };
        let bases: Vec<_> = in_default_modes(|| self.limits().into_iter().map(basis).collect());
        self.finish(gradients, &norm, &bases)
    }

    /// The statistics of each gradient of the last step. Empty unless the clip asks for
    /// [`tensor_stats`](crate::Clip::tensor_stats).
    #[must_use]
    pub fn tensor_stats(&self) -> &[TensorStats] {
        &self.tensor_stats
    }

    /// The counts over the steps, one for each record. Empty before the first step.
    #[must_use]
    pub fn step_counts(&self) -> &[StepCounts] {
        &self.step_counts
    }

    /// The norm histories of a [`z_clip`](crate::Clip::z_clip), one for each record, to save with a checkpoint. Empty before
    /// the first step.
    #[must_use]
    pub fn histories(&self) -> &[NormHistory] {
        &self.histories
    }

    /// Changes the limits, one for each group, for the steps that follow.
    ///
    /// # Errors
    ///
    /// [`Error::MaxNorm`] if a limit is negative or NaN; [`Error::LimitCount`] if the number of limits differs from that of the
    /// groups; [`Error::NeedsNorm`] for a clip by value. The plan is then unchanged.
    pub fn set_max_norms(&mut self, max_norms: &[f32]) -> Result<(), Error> {
        self.check_by_norm("set_max_norms")?;
        clip::check_max_norms(max_norms, self.operations.len())?;
        for (norm, &max_norm) in self.norms_mut().zip(max_norms) {
            norm.max_norm = max_norm;
        }
        Ok(())
    }

    /// Changes the [loss scale](crate::Clip::loss_scale) for the steps that follow.
    ///
    /// # Errors
    ///
    /// [`Error::LossScale`] if `scale` or its inverse is not positive and finite; [`Error::NeedsNorm`] for a clip by value.
    pub fn set_loss_scale(&mut self, scale: f32) -> Result<(), Error> {
        self.check_by_norm("set_loss_scale")?;
        let inverse_scale = clip::inverse_scale(scale)?;
        self.norms_mut().for_each(|norm| norm.inverse_scale = inverse_scale);
        Ok(())
    }

    /// Replaces the step counts, one for each record: to continue those of another plan, on the CPU or on a GPU. An empty slice
    /// starts from zero.
    ///
    /// The plan learns the number of records from the gradients of the next step. If the number of counts differs from it,
    /// [`clip`](Self::clip) returns [`Error::StateCount`].
    ///
    /// # Errors
    ///
    /// [`Error::NeedsNorm`] for a clip by value, which counts nothing; [`Error::StepCounts`] if one cannot have come about.
    pub fn set_step_counts(&mut self, counts: &[StepCounts]) -> Result<(), Error> {
        self.check_by_norm("set_step_counts")?;
        counts.iter().enumerate().try_for_each(|(record, counts)| counts.checked(record))?;
        self.step_counts = counts.to_vec();
        Ok(())
    }

    /// Restores saved histories, one for each record, of a plan on the CPU or on a GPU.
    ///
    /// The plan learns the number of records from the gradients of the next step. If the number of histories differs from it,
    /// [`clip`](Self::clip) returns [`Error::StateCount`].
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`] if the clip has no [`z_clip`](crate::Clip::z_clip); [`Error::NormHistory`] if a history is invalid.
    pub fn set_histories(&mut self, histories: &[NormHistory]) -> Result<(), Error> {
        if !matches!(self.operations[0], Operation::Norm(ByNorm { z_clip: Some(_), .. })) {
            return Err(Error::NotEnabled { what: "norm histories", with: "z_clip" });
        }
        histories.iter().enumerate().try_for_each(|(record, history)| history.checked(record))?;
        self.histories = histories.to_vec();
        Ok(())
    }

    fn check_by_norm(&self, what: &'static str) -> Result<(), Error> {
        match self.operations[0] {
            Operation::Norm(_) => Ok(()),
            Operation::Clamp { .. } => Err(Error::NeedsNorm { what, clip: "a clip by value" }),
        }
    }

    /// The clips of the groups, if they are by norm.
    fn norms_mut(&mut self) -> impl Iterator<Item = &mut ByNorm> {
        self.operations.iter_mut().filter_map(|operation| match operation {
            Operation::Norm(norm) => Some(norm),
            Operation::Clamp { .. } => None,
        })
    }

    fn limits(&self) -> Vec<f32> {
        self.operations.iter().map(Operation::limit).collect()
    }

    /// Makes room for so many records, or finds that there is.
    fn remember(&mut self, records: usize) -> Result<(), Error> {
        let is_first = |len: usize| len == 0;
        for (what, given) in
            [("norm histories", self.histories.len()), ("step counts", self.step_counts.len())]
        {
            if !is_first(given) && given != records {
                return Err(Error::StateCount { what, given, records });
            }
        }
        self.histories.resize(records, NormHistory::default());
        self.step_counts.resize(records, StepCounts::default());
        Ok(())
    }

    /// Concludes a step from what was measured, or supplied, and changes the gradients.
    fn finish(
        &mut self,
        gradients: &mut [Gradient<'_>],
        norm: &ByNorm,
        bases: &[Basis],
    ) -> Result<Vec<ClipRecord>, Error> {
        let records = self.records(norm, bases, |index| gradients[index].label)?;
        self.change(gradients, &records);
        Ok(records)
    }

    /// Makes the records, and remembers them. `label` gives the label of a gradient by its index.
    fn records<'a>(
        &mut self,
        norm: &ByNorm,
        bases: &[Basis],
        label: impl FnOnce(usize) -> Option<&'a str>,
    ) -> Result<Vec<ClipRecord>, Error> {
        let kept = self.histories.iter_mut().zip(&mut self.step_counts);
        let conclude = |(basis, (history, counts)): (&Basis, (&mut NormHistory, &mut StepCounts))| {
            let record = basis.record(norm, history);
            counts.add(&record);
            record
        };
        let records: Vec<_> = in_default_modes(|| bases.iter().zip(kept).map(conclude).collect());
        let is_error = |record: &&ClipRecord| norm.non_finite == NonFinite::Error && record.skip();
        match records.iter().position(|record| is_error(&record)) {
            Some(index) => Err(records[index].non_finite_error(index, records.len(), label)),
            None => Ok(records),
        }
    }

    fn change(&self, gradients: &mut [Gradient<'_>], records: &[ClipRecord]) {
        let mut changes = Vec::with_capacity(gradients.len());
        let mut own_records = records.iter();
        for gradient in gradients {
            let rows = gradient.rows;
            match self.operations[gradient.group] {
                Operation::Clamp { low, high } => {
                    changes.extend(gradient.scaled_elements().map(|all| (all, Change::Clamp { low, high })));
                }
                Operation::Norm(ByNorm { coefficient_only: true, .. }) => {}
                Operation::Norm(norm) if norm.scope.is_together() => {
                    let change = Change::of(&records[gradient.group]);
                    changes.extend(gradient.scaled_elements().zip(change));
                }
                Operation::Norm(_) => {
                    let own = own_records.by_ref().take(rows).map(Change::of);
                    let own: Vec<_> = own.collect();
                    let rows = gradient.scaled_elements().into_iter().flat_map(|all| all.rows(rows));
                    changes.extend(rows.zip(own).filter_map(|(row, change)| Some((row, change?))));
                }
            }
        }
        parallel::change(&mut changes);
    }
}
