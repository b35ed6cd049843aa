//! `ClipPlan`: clips on the CPU and keeps state between steps.

use super::gradient::{self, Gradient};
use super::kernels::{ElementCounts, Update};
use super::measurement::Measurement;
use super::norm_sums::NormSums;
use super::records::{self, RecordInput};
use super::{columns, parallel, tensor_stats};
use crate::float_modes::in_default_modes;
use crate::loss_scale::{self, LossScale, ScaleUpdate};
use crate::operation::{
    ByNorm, Operation, Scope, SkipAbove, check_max_norms, check_norm_histories, check_norm_windows,
    check_step_counts, inverse_scale,
};
use crate::record::NormMeasurement;
use crate::{Clip, ClipRecord, Error, NonFinite, NormHistory, NormWindow, StepCounts, TensorStats};

/// Clips on the CPU, and keeps step counts, norm histories, norm windows and statistics between
/// steps. Unlike the [`ClipPlan`](crate::ClipPlan) of the GPU, it holds no gradients.
///
/// Clips without state need no plan: call [`cpu::clip_groups`](crate::cpu::clip_groups).
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
    /// One per record. Empty before the first step.
    histories: Vec<NormHistory>,
    norm_windows: Vec<NormWindow>,
    step_counts: Vec<StepCounts>,
    tensor_stats: Vec<TensorStats>,
    /// The dynamic loss scale; the operations hold its inverse.
    loss_scale: Option<LossScale>,
}

impl ClipPlan {
    /// Creates a plan with one clip per group of gradients.
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
        let loss_scale = match operations.first() {
            Some(Operation::Norm(norm)) => norm.dynamic_loss_scale,
            _ => None,
        };
        Self {
            operations,
            histories: Vec::new(),
            norm_windows: Vec::new(),
            step_counts: Vec::new(),
            tensor_stats: Vec::new(),
            loss_scale,
        }
    }

    /// Clips the gradients of a step in place, each with the clip of its [group](Gradient::group). Returns the same
    /// records as [`cpu::clip_groups`](crate::cpu::clip_groups).
    ///
    /// # Errors
    ///
    /// Those of [`cpu::clip_groups`](crate::cpu::clip_groups); [`Error::StateCount`] if the number of records differs
    /// from the number in the previous step. On error, no gradient is written.
    pub fn clip(&mut self, gradients: &mut [Gradient<'_>]) -> Result<Vec<ClipRecord>, Error> {
        gradient::validate(gradients, self.operations.len(), self.operations[0].needs_parameters())?;
        let norm = match self.operations[0] {
            Operation::Norm(norm) if norm.scope == Scope::Supplied => return Err(Error::NormNotSupplied),
            Operation::Norm(norm) => norm,
            Operation::Clamp { .. } => {
                update(gradients, &self.operations, &[]);
                return Ok(Vec::new());
            }
        };
        self.set_record_count(records::record_count(gradients, norm.scope, self.operations.len()))?;
        let (inputs, stats) = records::measure(gradients, &norm, &self.limits());
        self.tensor_stats = stats;
        self.finish(gradients, &norm, &inputs)
    }

    /// Clips the gradients of a step by `total_norm`, a norm that was measured elsewhere. The clips of the plan must be
    /// [`Clip::by_supplied_norm`].
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
        gradient::validate(gradients, self.operations.len(), false)?;
        self.set_record_count(self.operations.len())?;
        let scaled = in_default_modes(|| {
            // A norm of -0 becomes 0, and a negative norm becomes NaN.
            let total_norm = if total_norm < 0.0 { f32::NAN } else { total_norm.abs() };
            // `ClipRecord::new` multiplies by this factor again.
            f64::from(total_norm) / f64::from(norm.inverse_norm_scale())
        });
        let measured =
            NormMeasurement { norm: scaled, max_magnitude: 0.0, first_non_finite: None, empty: false };
        let input = |limit: f32| RecordInput { measured, limit: limit.into() };
        let inputs: Vec<_> = in_default_modes(|| self.limits().into_iter().map(input).collect());
        self.finish(gradients, &norm, &inputs)
    }

    /// Begins the measurement of one gradient of a step, for gradients that are not in memory all at once.
    ///
    /// # Errors
    ///
    /// [`Error::NeedsNorm`] for a clip by value; [`Error::NormNotSupplied`] for a clip by a supplied norm.
    pub fn begin_measurement(&self) -> Result<Measurement, Error> {
        Ok(Measurement::new(&self.measured_norm("begin_measurement")?))
    }

    /// Finishes a step whose gradients were measured in parts. Returns the same records as [`clip`](Self::clip), and
    /// updates the plan's counts, histories and statistics in the same way. Writes no gradient: call
    /// [`cpu::scale`](crate::cpu::scale) to apply the records.
    ///
    /// # Errors
    ///
    /// Those of [`clip`](Self::clip) and [`begin_measurement`](Self::begin_measurement); [`Error::MeasurementMismatch`]
    /// if a measurement comes from a plan with a different norm type or a different value of
    /// [`tensor_stats`](crate::Clip::tensor_stats).
    pub fn finish_measurements(&mut self, gradients: &[Measurement]) -> Result<Vec<ClipRecord>, Error> {
        let norm = self.measured_norm("finish_measurements")?;
        let groups = self.operations.len();
        for (index, measurement) in gradients.iter().enumerate() {
            let gradient = || measurement.id(index);
            let given = measurement.group;
            if given >= groups {
                return Err(Error::GroupWithoutClip { gradient: gradient(), given, groups });
            }
            if matches!(norm.scope, Scope::Parameter { .. }) {
                return Err(Error::MissingParameter { gradient: gradient() });
            }
            if !measurement.fits(&norm) {
                return Err(Error::MeasurementMismatch { gradient: gradient() });
            }
        }
        let (inputs, stats) = in_default_modes(|| {
            let values: Vec<_> = gradients.iter().map(Measurement::value).collect();
            let with_stats = values.iter().filter(|_| norm.tensor_stats);
            let stats = with_stats.map(|&(sums, counts)| tensor_stats::from_sums(sums, counts, &norm));
            (self.record_inputs(gradients, &values, &norm), stats.collect())
        });
        self.set_record_count(inputs.len())?;
        self.tensor_stats = stats;
        self.records(&norm, &inputs, |index| gradients[index].label.as_deref())
    }

    /// Returns the statistics of each gradient of the last step. Empty unless the clip enables
    /// [`tensor_stats`](crate::Clip::tensor_stats).
    #[must_use]
    pub fn tensor_stats(&self) -> &[TensorStats] {
        &self.tensor_stats
    }

    /// Returns the step counts, one per record. Empty before the first step.
    #[must_use]
    pub fn step_counts(&self) -> &[StepCounts] {
        &self.step_counts
    }

    /// Returns the norm histories of a [`z_clip`](crate::Clip::z_clip), one per record, to save with a checkpoint.
    /// Empty before the first step.
    #[must_use]
    pub fn histories(&self) -> &[NormHistory] {
        &self.histories
    }

    /// Returns the last norms of an [`auto_clip`](crate::Clip::auto_clip), one window per record, to save with a
    /// checkpoint. Empty before the first step.
    #[must_use]
    pub fn norm_windows(&self) -> &[NormWindow] {
        &self.norm_windows
    }

    /// Replaces the limits, one per group, for later steps.
    ///
    /// # Errors
    ///
    /// [`Error::MaxNorm`] if a limit is negative or NaN; [`Error::LimitCount`] if the number of limits differs from the
    /// number of groups; [`Error::NeedsNorm`] for a clip by value. On error, the plan is unchanged.
    pub fn set_max_norms(&mut self, max_norms: &[f32]) -> Result<(), Error> {
        self.check_by_norm("set_max_norms")?;
        check_max_norms(max_norms, self.operations.len())?;
        for (norm, &max_norm) in self.norms_mut().zip(max_norms) {
            norm.max_norm = max_norm;
        }
        Ok(())
    }

    /// Replaces the [loss scale](crate::Clip::loss_scale) for later steps.
    ///
    /// # Errors
    ///
    /// [`Error::LossScale`] if `scale` or its inverse is not positive and finite; [`Error::NotEnabled`] for a clip by
    /// value without a loss scale; [`Error::DynamicLossScale`] if the plan updates its own scale.
    pub fn set_loss_scale(&mut self, scale: f32) -> Result<(), Error> {
        if self.loss_scale.is_some() {
            return Err(Error::DynamicLossScale { what: "set_loss_scale" });
        }
        if matches!(self.operations[0], Operation::Clamp { inverse_scale: None, .. }) {
            return Err(Error::NotEnabled { what: "loss scale", with: "loss_scale" });
        }
        self.set_inverse_scale(inverse_scale(scale)?);
        Ok(())
    }

    /// Returns the [dynamic loss scale](crate::Clip::dynamic_loss_scale) for the loss of the next step, also to save with a
    /// checkpoint. None if the clip has none.
    #[must_use]
    pub const fn loss_scale(&self) -> Option<&LossScale> {
        self.loss_scale.as_ref()
    }

    /// Replaces the [dynamic loss scale](crate::Clip::dynamic_loss_scale), to restore a checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`] if the clip has no dynamic loss scale.
    pub fn set_dynamic_loss_scale(&mut self, scale: LossScale) -> Result<(), Error> {
        if self.loss_scale.is_none() {
            return Err(Error::NotEnabled { what: "dynamic loss scale", with: "dynamic_loss_scale" });
        }
        self.loss_scale = Some(scale);
        self.set_inverse_scale(inverse_scale(scale.scale())?);
        Ok(())
    }

    fn set_inverse_scale(&mut self, inverse_scale: f32) {
        for operation in &mut self.operations {
            match operation {
                Operation::Norm(norm) => norm.inverse_scale = inverse_scale,
                Operation::Clamp { inverse_scale: scale, .. } => *scale = Some(inverse_scale),
            }
        }
    }

    /// Replaces the step counts, one per record, to continue the counts of another plan on the CPU or on a GPU. An
    /// empty slice resets them to zero.
    ///
    /// The gradients of the next step determine the number of records. If the number of counts differs from it,
    /// [`clip`](Self::clip) returns [`Error::StateCount`].
    ///
    /// # Errors
    ///
    /// [`Error::NeedsNorm`] for a clip by value, which has no counts; [`Error::StepCounts`] if a count is invalid.
    pub fn set_step_counts(&mut self, counts: &[StepCounts]) -> Result<(), Error> {
        self.check_by_norm("set_step_counts")?;
        check_step_counts(counts)?;
        self.step_counts = counts.to_vec();
        Ok(())
    }

    /// Restores the saved histories of a plan on the CPU or on a GPU, one per record.
    ///
    /// The gradients of the next step determine the number of records. If the number of histories differs from it,
    /// [`clip`](Self::clip) returns [`Error::StateCount`].
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`] if the clip has no [`z_clip`](crate::Clip::z_clip); [`Error::NormHistory`] if a history is
    /// invalid.
    pub fn set_histories(&mut self, histories: &[NormHistory]) -> Result<(), Error> {
        if !matches!(self.operations[0], Operation::Norm(ByNorm { z_clip: Some(_), .. })) {
            return Err(Error::NotEnabled { what: "norm histories", with: "z_clip" });
        }
        check_norm_histories(histories)?;
        self.histories = histories.to_vec();
        Ok(())
    }

    /// Restores the saved norm windows of a plan on the CPU or on a GPU, one per record.
    ///
    /// The gradients of the next step determine the number of records. If the number of windows differs from it,
    /// [`clip`](Self::clip) returns [`Error::StateCount`].
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`] if the clip has no [`auto_clip`](crate::Clip::auto_clip); [`Error::NormWindow`] if a
    /// window has more norms than the clip keeps, or a norm that is not positive and finite.
    pub fn set_norm_windows(&mut self, windows: &[NormWindow]) -> Result<(), Error> {
        let Operation::Norm(ByNorm { auto_clip: Some(auto_clip), .. }) = self.operations[0] else {
            return Err(Error::NotEnabled { what: "norm windows", with: "auto_clip" });
        };
        check_norm_windows(windows, auto_clip)?;
        self.norm_windows = windows.to_vec();
        Ok(())
    }

    /// Returns the clips of the groups.
    pub(crate) fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Checks that the state is that of so many records, or that there is none yet.
    pub(crate) fn check_record_count(&self, records: usize) -> Result<(), Error> {
        for (what, given) in [
            ("norm histories", self.histories.len()),
            ("norm windows", self.norm_windows.len()),
            ("step counts", self.step_counts.len()),
        ] {
            if given != 0 && given != records {
                return Err(Error::StateCount { what, given, records });
            }
        }
        Ok(())
    }

    /// Computes the records of gradients that were measured elsewhere, and updates the state of each, as
    /// [`clip`](Self::clip) does. Each measurement has its limit.
    pub(crate) fn conclude_measured(
        &mut self,
        norm: &ByNorm,
        measured: impl IntoIterator<Item = (NormMeasurement, f32)>,
    ) -> Result<Vec<ClipRecord>, Error> {
        let input = |(measured, limit): (NormMeasurement, f32)| RecordInput { measured, limit: limit.into() };
        let inputs: Vec<_> = measured.into_iter().map(input).collect();
        self.set_record_count(inputs.len())?;
        self.conclude(norm, &inputs)
    }

    fn check_by_norm(&self, what: &'static str) -> Result<(), Error> {
        match self.operations[0] {
            Operation::Norm(_) => Ok(()),
            Operation::Clamp { .. } => Err(Error::NeedsNorm { what, clip: "a clip by value" }),
        }
    }

    /// Returns the clips of the groups. Empty for clips by value.
    fn norms_mut(&mut self) -> impl Iterator<Item = &mut ByNorm> {
        self.operations.iter_mut().filter_map(|operation| match operation {
            Operation::Norm(norm) => Some(norm),
            Operation::Clamp { .. } => None,
        })
    }

    fn limits(&self) -> Vec<f32> {
        self.operations.iter().map(Operation::limit).collect()
    }

    /// Returns the norm that the plan measures. `what` names the calling method in errors.
    fn measured_norm(&self, what: &'static str) -> Result<ByNorm, Error> {
        match self.operations[0] {
            Operation::Norm(norm) if norm.scope == Scope::Supplied => Err(Error::NormNotSupplied),
            Operation::Norm(norm) => Ok(norm),
            Operation::Clamp { .. } => Err(Error::NeedsNorm { what, clip: "a clip by value" }),
        }
    }

    /// Combines the values of measurements into the input of each record.
    fn record_inputs(
        &self,
        gradients: &[Measurement],
        values: &[(NormSums, ElementCounts)],
        norm: &ByNorm,
    ) -> Vec<RecordInput> {
        let limits = self.limits();
        // The gradient indices of each record.
        let members: Vec<Vec<usize>> = if norm.scope.is_together() {
            let mut members = vec![Vec::new(); limits.len()];
            for (index, gradient) in gradients.iter().enumerate() {
                members[gradient.group].push(index);
            }
            members
        } else {
            (0..gradients.len()).map(|index| vec![index]).collect()
        };
        let input = |(record, members): (usize, &Vec<usize>)| {
            let parts: Vec<_> =
                members.iter().map(|&index| (gradients[index].len, values[index].0)).collect();
            let limit = if norm.scope.is_together() {
                limits[record]
            } else {
                let gradient = &gradients[record];
                norm.scope.limit(gradient.group, gradient.len as u64, true).among(&limits)
            };
            RecordInput {
                measured: records::combine(&parts, norm, |index| members[index]),
                limit: limit.into(),
            }
        };
        members.iter().enumerate().map(input).collect()
    }

    /// Sets the number of records in the first step, and checks it in later steps.
    fn set_record_count(&mut self, records: usize) -> Result<(), Error> {
        self.check_record_count(records)?;
        self.histories.resize(records, NormHistory::default());
        self.norm_windows.resize_with(records, NormWindow::default);
        self.step_counts.resize(records, StepCounts::default());
        Ok(())
    }

    /// Computes the records of a step, and applies them to the gradients.
    fn finish(
        &mut self,
        gradients: &mut [Gradient<'_>],
        norm: &ByNorm,
        inputs: &[RecordInput],
    ) -> Result<Vec<ClipRecord>, Error> {
        let records = self.records(norm, inputs, |index| gradients[index].label)?;
        update(gradients, &self.operations, &records);
        Ok(records)
    }

    /// Computes the records of a step, and updates the state of each. `label` maps the index of a gradient
    /// to its label.
    fn records<'a>(
        &mut self,
        norm: &ByNorm,
        inputs: &[RecordInput],
        label: impl FnOnce(usize) -> Option<&'a str>,
    ) -> Result<Vec<ClipRecord>, Error> {
        let records = self.conclude(norm, inputs)?;
        match first_error(norm, &records) {
            Some(index) => Err(records[index].non_finite_error(index, records.len(), label)),
            None => Ok(records),
        }
    }

    /// Computes the records of a step, and updates the state of each.
    fn conclude(&mut self, norm: &ByNorm, inputs: &[RecordInput]) -> Result<Vec<ClipRecord>, Error> {
        let past_norms = self.histories.iter_mut().zip(&mut self.norm_windows);
        let state = past_norms.zip(&mut self.step_counts);
        let mut records: Vec<_> = in_default_modes(|| {
            let records = inputs.iter().zip(state).map(|(input, ((history, window), counts))| {
                let record = skip_above(norm, input.record(norm, history, window), counts);
                counts.add(&record);
                record
            });
            records.collect()
        });
        self.update_loss_scale(&mut records)?;
        Ok(records)
    }

    /// Updates the dynamic loss scale, if there is one, and marks the records that overflowed at its floor.
    fn update_loss_scale(&mut self, records: &mut [ClipRecord]) -> Result<(), Error> {
        let Some(mut scale) = self.loss_scale.filter(|_| !records.is_empty()) else { return Ok(()) };
        if in_default_modes(|| scale.update_all(records)) == ScaleUpdate::AtFloor {
            for record in records.iter_mut().filter(|record| !loss_scale::is_finite(record)) {
                *record = record.with_scale_at_floor();
            }
        }
        self.loss_scale = Some(scale);
        self.set_inverse_scale(inverse_scale(scale.scale())?);
        Ok(())
    }
}

/// Measures gradients for records that are computed elsewhere. Returns the measurement of each record, and the statistics of each
/// gradient if the clips enable them. `operations` are by norm, without AGC.
pub(crate) fn measure_groups(
    gradients: &[Gradient<'_>],
    operations: &[Operation],
) -> Result<(Vec<NormMeasurement>, Vec<TensorStats>), Error> {
    gradient::validate(gradients, operations.len(), false)?;
    let Operation::Norm(norm) = operations[0] else {
        return Err(Error::NeedsNorm { what: "measure_groups", clip: "a clip by value" });
    };
    let limits: Vec<f32> = operations.iter().map(Operation::limit).collect();
    let (inputs, stats) = records::measure(gradients, &norm, &limits);
    Ok((inputs.into_iter().map(|input| input.measured).collect(), stats))
}

/// Applies the clips of the groups to gradients. Clips by norm have `records`.
pub(crate) fn update(gradients: &mut [Gradient<'_>], operations: &[Operation], records: &[ClipRecord]) {
    let mut updates = Vec::with_capacity(gradients.len());
    let mut row_records = records.iter();
    let mut by_columns = Vec::new();
    for gradient in gradients {
        let rows = gradient.rows;
        match operations[gradient.group] {
            Operation::Clamp { low, high, inverse_scale } => {
                let update = Update::clamp(low, high, inverse_scale);
                updates.extend(gradient.scaled_elements().map(|all| (all, update)));
            }
            Operation::Norm(ByNorm { coefficient_only: true, .. }) => {}
            Operation::Norm(norm) if norm.scope.is_together() => {
                let update = Update::from_record(&records[gradient.group]);
                updates.extend(gradient.scaled_elements().zip(update));
            }
            Operation::Norm(_) if gradient.columns != 1 => {
                let of_columns = row_records.by_ref().take(gradient.columns);
                let of_columns: Vec<_> = of_columns.map(Update::from_record).collect();
                by_columns.extend(gradient.scaled_elements().map(|all| (all, of_columns)));
            }
            Operation::Norm(_) => {
                let row_updates: Vec<_> = row_records.by_ref().take(rows).map(Update::from_record).collect();
                let rows = gradient.scaled_elements().into_iter().flat_map(|all| all.rows(rows));
                updates.extend(rows.zip(row_updates).filter_map(|(row, update)| Some((row, update?))));
            }
        }
    }
    parallel::update(&mut updates);
    for (elements, updates) in by_columns {
        columns::update(elements, &updates);
    }
}

/// Returns the index of the first record that is an error under the policy of the clip.
pub(crate) fn first_error(norm: &ByNorm, records: &[ClipRecord]) -> Option<usize> {
    let is_error = |record: &ClipRecord| norm.non_finite == NonFinite::Error && record.non_finite();
    records.iter().position(is_error)
}

/// Skips the step of a record whose norm exceeds the second limit of the clip. `counts` has the skips in a row so far.
fn skip_above(norm: &ByNorm, record: ClipRecord, counts: &mut StepCounts) -> ClipRecord {
    let Some(SkipAbove { norm: limit, max_consecutive }) = norm.skip_above else { return record };
    if record.non_finite() {
        return record;
    }
    if record.norm() > limit.into() && counts.consecutive_skips < max_consecutive {
        counts.consecutive_skips += 1;
        return record.skipped();
    }
    counts.consecutive_skips = 0;
    record
}
