//! `ShardedClip`: one clip of gradients that are measured in shards.

use std::fmt;

use super::agreement::{self, CHANGEABLE, Restored, Setting};
use super::all_reduce::AllReduce;
use super::reduction::{Format, JointMeasurement, MAX_SIZE, Numbers, Rule};
use super::reproducible::{NUMBERS_PER_TILE, WholeGradients, add_tile};
use super::share::Share;
use super::tile_norm::TileNorm;
use crate::cpu;
use crate::float_modes::in_default_modes;
use crate::loss_scale::LossScale;
use crate::operation::{ByNorm, Operation, Scope};
use crate::stats::{NormHistory, NormWindow, StepCounts, TensorStats};
use crate::{Clip, ClipRecord, Error, NonFinite, NormType};

/// A clip of gradients whose shards lie on several devices or in several processes: its options and its state.
///
/// Every rank creates one with the same options. At each step a rank measures its shard, [`join`](Self::join)s its [`Share`] with
/// those of all ranks, and scales its shard by the joint record. The decisions of a step (limit, coefficient, skip, error) are
/// computed on the host, from numbers that are the same on all ranks. So all ranks decide alike, bit for bit, whatever their
/// devices are, and their state stays the same.
///
/// [`clip`](Self::clip) runs a whole step for one plan. With [`SingleProcess`](super::SingleProcess) the result is that of a
/// [`ClipPlan`](crate::ClipPlan) of the same gradients, bit for bit, if f64 can hold the norm; that of a p near 0 may be larger.
///
/// ```
/// # let adapter = gradclip::adapters::enumerate().into_iter().next().expect("an adapter: scripts/test installs a software one");
/// # let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
/// # let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
/// # let shard = device.create_buffer(&wgpu::BufferDescriptor { label: None, size: 64, usage, mapped_at_creation: false });
/// # queue.write_buffer(&shard, 0, bytemuck::cast_slice(&[3.0_f32, 4.0]));
/// use gradclip::distributed::{ShardedClip, SingleProcess};
/// use gradclip::{Clip, Clipper, Gradient};
///
/// let mut all_reduce = SingleProcess; // or that of gradclip-mpi
/// let mut clip = ShardedClip::new(&[Clip::by_global_norm(1.0)])?;
/// let plan = clip.prepare(&Clipper::new(&device)?, &[Gradient::f32(&shard)])?;
/// // At each step, after the backward pass:
/// let records = clip.clip(&plan, &queue, &mut all_reduce)?;
/// assert_eq!(records[0].total_norm, 5.0); // of all shards
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Limits
///
/// Clips by global norm, [by norm](Clip::by_norm) and [by RMS](Clip::by_rms) can be sharded, in groups, with any option. Not
/// so clips by value, which need no norm; by a supplied norm; by the norm of a parameter; and the 0-norm, which counts gradients.
///
/// With one norm or [statistics](Clip::tensor_stats) for each gradient, all ranks list the same gradients in the same order; a rank
/// without a part of a gradient lists it with no elements. Otherwise each rank lists what it has.
#[derive(Clone, Debug)]
pub struct ShardedClip {
    /// The options, and the state of the decisions.
    decisions: cpu::ClipPlan,
    norm: ByNorm,
    rule: Rule,
    tensor_stats: Vec<TensorStats>,
    restored: Restored,
    /// The gradients of all ranks, for a reproducible norm.
    whole: Option<WholeGradients>,
    /// Set once all ranks have compared their options.
    format: Option<Format>,
    records: Vec<ClipRecord>,
}

impl ShardedClip {
    /// Creates a clip with one [`Clip`] for each group of gradients.
    ///
    /// # Errors
    ///
    /// Those of [`Clip::checked_groups`]; [`Error::NotSharded`] and [`Error::NeedsNorm`] for a clip that cannot be sharded.
    pub fn new(clips: &[Clip]) -> Result<Self, Error> {
        let operations = Clip::checked_groups(clips)?;
        let Operation::Norm(norm) = operations[0] else {
            return Err(Error::NeedsNorm { what: "a sharded clip", clip: "a clip by value" });
        };
        let refused = match norm.scope {
            Scope::Supplied => Some(("Clip::by_supplied_norm", "it measures the norm itself")),
            Scope::Parameter { .. } => Some(("Clip::by_parameter_norm", "the parameters are not measured")),
            _ if norm.norm_type.p() == 0.0 => {
                Some(("the 0-norm", "it counts gradients, and a gradient may have several shards"))
            }
            _ => None,
        };
        if let Some((option, reason)) = refused {
            return Err(Error::NotSharded { option, reason });
        }
        Ok(Self {
            decisions: cpu::ClipPlan::of(operations),
            norm,
            rule: Rule::new(norm.norm_type),
            tensor_stats: Vec::new(),
            restored: Restored::default(),
            whole: None,
            format: None,
            records: Vec::new(),
        })
    }

    /// Makes the bits of the norm independent of the number of ranks and of how the gradients are cut. They are those of one
    /// [`ClipPlan`](crate::ClipPlan) of all gradients in the same order, if the devices add floats in the order of the shaders.
    ///
    /// `elements` has the number of elements of each whole gradient, the same on all ranks. Prepare plans with
    /// [`prepare_shards`](Self::prepare_shards). Shards are cut at multiples of [`tile_elements`](Self::tile_elements), and each element is
    /// measured in exactly one shard. A gradient that no rank measures cannot be in the list.
    ///
    /// The price: the all-reduce also sums two numbers for each tile, instead of a few numbers in all. These are 16 bytes for
    /// 4,096 to 65,536 elements, about 1 MB for 10⁹ elements. Their partials are read back, too.
    ///
    /// # Errors
    ///
    /// [`Error::NotSharded`] unless the clip is a single one by global L1 or L2 norm; for more than 2^26 tiles; and after the first
    /// [`join`](Self::join).
    pub fn reproducible(self, elements: &[u64]) -> Result<Self, Error> {
        let is_sum = matches!(self.norm.norm_type, NormType::L1 | NormType::L2);
        if !is_sum || !self.is_together() || self.decisions.operations().len() > 1 {
            let reason = "only one global L1 or L2 norm is a sum of partials";
            return Err(Error::NotSharded { option: "a reproducible norm", reason });
        }
        if self.format.is_some() {
            let reason = "the ranks have compared their options";
            return Err(Error::NotSharded { option: "a reproducible norm after the first step", reason });
        }
        let reason = "its gradients have too many elements";
        let whole = WholeGradients::new(elements);
        let whole = whole.ok_or(Error::NotSharded { option: "a reproducible norm", reason })?;
        Ok(Self { whole: Some(whole), ..self })
    }

    /// Returns the number of elements of a tile, at whose multiples the shards of a [reproducible](Self::reproducible) norm are cut.
    /// None for another clip, whose shards may be cut anywhere.
    #[must_use]
    pub fn tile_elements(&self) -> Option<u64> {
        self.whole.as_ref().map(WholeGradients::tile_elements)
    }

    /// Joins the shares of a step: the one collective between measuring and scaling. Every rank must call it at every step, with the
    /// shares of its plans; without gradients, with an empty list. Returns the records of all gradients, the same on all ranks.
    ///
    /// A rank that could not measure passes its error. It still takes part, and all ranks return [`Error::RankFailed`], so no rank
    /// waits for another. Do not return before this call.
    ///
    /// [`ClipRecord::first_non_finite`] is the smallest index in the lists of all ranks; with [reproducible](Self::reproducible) norms, the
    /// index of the whole gradient.
    ///
    /// The first call compares the options of all ranks in an all-reduce of its own. Norms of p below 1, above 6 or negative take an
    /// additional one.
    ///
    /// # Errors
    ///
    /// [`JoinError::Clip`] with the same error on all ranks:
    ///
    /// - [`Error::RanksDiffer`] if they do not clip alike;
    /// - [`Error::RankFailed`], with the cause on the rank that it names; others that failed log theirs;
    /// - [`Error::TileCount`] if a tile of a reproducible norm is not in exactly one shard;
    /// - under [`NonFinite::Error`], [`Error::NonFinite`], in an [`Error::OnRank`] if the rank is known.
    ///
    /// [`JoinError::AllReduce`] if the library fails. After an error the state is as before, except after [`Error::NonFinite`], which is
    /// a step like any other.
    pub fn join<C: AllReduce>(
        &mut self,
        shares: impl IntoIterator<Item = Result<Share, Error>>,
        all_reduce: &mut C,
    ) -> Result<Vec<ClipRecord>, JoinError<C::Error>> {
        let size = all_reduce.size();
        let has_none = |share: &Share| share.records.is_empty() && share.gradients == 0;
        let shares = shares.into_iter().filter(|share| !share.as_ref().is_ok_and(has_none));
        let shares: Result<Vec<_>, _> = shares.collect();
        let shares = shares.and_then(|shares| self.checked(shares, size));
        if let Err(error) = &shares {
            // Only the error of the first rank that failed is returned.
            log::error!("this rank cannot take part in a sharded clip: {error}");
        }
        let format = match self.format {
            Some(format) => format,
            None => self.agree(&shares, all_reduce)?,
        };
        if self.format.is_none() && !self.is_together() {
            // No rank has a gradient, and so none has a record. Restored state stays for the first gradients.
            self.records.clear();
            return Ok(Vec::new());
        }
        let rank = all_reduce.rank();
        let settings = agreement::changeable(self.decisions.operations(), self.restored);

        let mut numbers = format.neutral();
        let mut references = Vec::new();
        let local = shares.as_deref().unwrap_or_default();
        if self.rule.needs_reference() {
            in_default_modes(|| {
                for share in local {
                    numbers.add_references(format, self.rule, &share.records, &share.tensors);
                }
            });
            references = format.references(&numbers);
            all_reduce.max(&mut references).map_err(JoinError::AllReduce)?;
        }
        in_default_modes(|| {
            for share in local {
                numbers.add(format, self.rule, &references, rank, &share.records, &share.tensors);
            }
        });
        // The numbers of the tiles follow those of the records and gradients.
        let tiles = numbers.sums.len();
        if let Some(whole) = &self.whole {
            numbers.sums.resize(tiles + whole.tiles() * NUMBERS_PER_TILE, 0.0);
            for &(tile, partial) in local.iter().flat_map(|share| &share.tiles) {
                let at = tiles + tile * NUMBERS_PER_TILE;
                add_tile(&mut numbers.sums[at..at + NUMBERS_PER_TILE], partial);
            }
        }
        let header = match &shares {
            Ok(_) => agreement::numbers(&settings),
            Err(_) => agreement::abstention(CHANGEABLE),
        };
        numbers.maxima[0] = failure_key(shares.is_err(), all_reduce);
        numbers.maxima[1..HEADER].copy_from_slice(&header);
        all_reduce.sum_and_max(&mut numbers.sums, &mut numbers.maxima).map_err(JoinError::AllReduce)?;

        check_failure(numbers.maxima[0], all_reduce, shares.err())?;
        agreement::check(&settings, &numbers.maxima[1..HEADER])?;
        let exact = match &self.whole {
            Some(whole) => {
                Some(in_default_modes(|| whole.norm(self.norm.norm_type, &numbers.sums[tiles..]))?)
            }
            None => None,
        };
        Ok(self.conclude(format, &numbers, &references, exact)?)
    }

    /// Returns the records of the last step. Under [`NonFinite::Error`] also those of a step that was an error; they say to skip it.
    #[must_use]
    pub fn records(&self) -> &[ClipRecord] {
        &self.records
    }

    /// Checks the shares of this rank, and that they fit those of earlier steps.
    fn checked(&self, shares: Vec<Share>, size: usize) -> Result<Vec<Share>, Error> {
        if size > MAX_SIZE {
            let reason = "a rank and the index of a gradient share 53 bits";
            return Err(Error::NotSharded { option: "more than 2^21 ranks", reason });
        }
        let format_of = |share: &Share| Format {
            header: HEADER,
            records: share.records.len(),
            tensors: share.gradients,
            groups: groups(share),
        };
        let Some(format) = self.format.or(shares.first().map(format_of)) else { return Ok(shares) };
        self.decisions.check_record_count(format.records)?;
        let clips = self.decisions.operations().len();
        let tiles = self.whole.as_ref().map_or(0, WholeGradients::tiles);
        for share in &shares {
            let own = format_of(share);
            for (what, given, needed) in
                [("records", own.records, format.records), ("gradients", own.tensors, format.tensors)]
            {
                if given != needed {
                    return Err(Error::ShardCount { what, given, needed });
                }
            }
            let fits = share.kind == Some(self.kind())
                && own.groups == format.groups
                && (!self.is_together() || own.records == clips)
                && share.records.iter().all(|measured| (measured.unit.group as usize) < clips)
                && share.tiles.iter().all(|&(tile, _)| tile < tiles);
            if !fits {
                return Err(Error::ForeignShare);
            }
        }
        Ok(shares)
    }

    /// Compares the options of all ranks, and returns the format of their numbers. Keeps it once a rank has gradients.
    fn agree<C: AllReduce>(
        &mut self,
        shares: &Result<Vec<Share>, Error>,
        all_reduce: &mut C,
    ) -> Result<Format, JoinError<C::Error>> {
        let mut options = agreement::options(&self.norm, self.decisions.operations().len());
        let whole = self.whole.as_ref().map_or(&[][..], WholeGradients::elements);
        let whole = agreement::digest(bytemuck::cast_slice(whole));
        options.push(Setting::digest("the whole gradients of the reproducible norm", whole));
        // A rank without gradients does not know how many there are.
        let share = shares.as_ref().ok().and_then(|shares| shares.first());
        let shape = [
            Setting::count("the number of records", share.map_or(0, |share| share.records.len())),
            Setting::count("the number of gradients", share.map_or(0, |share| share.gradients)),
            Setting::digest("the groups of the gradients", share.map_or(0, groups)),
        ];
        let (options_end, shape_end) = (1 + 2 * options.len(), 1 + 2 * (options.len() + shape.len()));
        let numbers = |takes_part: bool, settings: &[Setting]| {
            if takes_part { agreement::numbers(settings) } else { agreement::abstention(settings.len()) }
        };
        let mut maxima = vec![failure_key(shares.is_err(), all_reduce)];
        maxima.extend(numbers(shares.is_ok(), &options));
        maxima.extend(numbers(share.is_some(), &shape));
        debug_assert!(maxima.len() <= COMPARED, "the settings fit");
        maxima.resize(COMPARED, f64::MIN);
        all_reduce.max(&mut maxima).map_err(JoinError::AllReduce)?;
        check_failure(maxima[0], all_reduce, shares.as_ref().err().cloned())?;
        agreement::check(&options, &maxima[1..options_end])?;
        agreement::check(&shape, &maxima[options_end..shape_end])?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, or f64::MIN")]
        let count = |at: usize| maxima[options_end + 2 * at].max(0.0) as usize;
        let groups = self.decisions.operations().len();
        let records = if self.norm.scope.is_together() { groups } else { count(0) };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "53 bits, or f64::MIN")]
        let groups = maxima[options_end + 4].max(0.0) as u64;
        let format = Format { header: HEADER, records, tensors: count(1), groups };
        self.format = (maxima[options_end] >= 0.0).then_some(format);
        Ok(format)
    }

    /// Computes the records and the statistics from the numbers of all ranks.
    fn conclude(
        &mut self,
        format: Format,
        numbers: &Numbers,
        references: &[f64],
        exact: Option<(TileNorm, Option<usize>)>,
    ) -> Result<Vec<ClipRecord>, Error> {
        let (rule, norm) = (self.rule, self.current_norm());
        let limits: Vec<f32> = self.decisions.operations().iter().map(Operation::limit).collect();
        let mut joint: Vec<JointMeasurement> = in_default_modes(|| {
            (0..format.records).map(|index| numbers.record(format, rule, references, index)).collect()
        });
        if let (Some((exact, first_non_finite)), [joint]) = (exact, &mut joint[..]) {
            joint.measured.norm = exact.norm;
            joint.measured.max_magnitude = exact.max_magnitude;
            joint.measured.first_non_finite = first_non_finite.and_then(|index| u32::try_from(index).ok());
            // The index is that of a whole gradient, which may lie on several ranks.
            joint.rank = None;
        }
        let limit = |(index, joint): (usize, &JointMeasurement)| {
            if norm.scope.is_together() {
                return limits[index];
            }
            let unit = joint.unit;
            // Ranks compared the groups, so there is a limit for each.
            norm.scope.limit(unit.group as usize, unit.elements, unit.measured).among(&limits)
        };
        let limits: Vec<f32> = in_default_modes(|| joint.iter().enumerate().map(limit).collect());
        let measured = joint.iter().map(|joint| joint.measured).zip(limits);
        self.records = self.decisions.conclude_measured(&norm, measured)?;
        let stats = |index| {
            let stats = numbers.tensor(format, rule, references, index);
            stats.unscaled(norm.inverse_norm_scale(), norm.inverse_scale)
        };
        self.tensor_stats = in_default_modes(|| (0..format.tensors).map(stats).collect());
        let Some(index) = cpu::first_error(&norm, &self.records) else { return Ok(self.records.clone()) };
        let error = self.records[index].non_finite_error(index, self.records.len(), |_| None);
        Err(match joint[index].rank {
            Some(rank) => Error::OnRank { rank, error: Box::new(error) },
            None => error,
        })
    }

    /// Returns whether the gradients of a group share a record.
    pub(super) const fn is_together(&self) -> bool {
        self.norm.scope.is_together()
    }

    /// Returns what a share of this clip measures: the norm type, and whether there are statistics.
    pub(super) const fn kind(&self) -> (NormType, bool) {
        (self.norm.norm_type, self.norm.tensor_stats)
    }

    pub(super) const fn whole(&self) -> Option<&WholeGradients> {
        self.whole.as_ref()
    }

    pub(super) const fn is_coefficient_only(&self) -> bool {
        self.norm.coefficient_only
    }

    pub(super) const fn has_tensor_stats(&self) -> bool {
        self.norm.tensor_stats
    }

    /// Returns the clip of the first group with the current loss scale.
    fn current_norm(&self) -> ByNorm {
        match self.decisions.operations()[0] {
            Operation::Norm(norm) => norm,
            Operation::Clamp { .. } => self.norm,
        }
    }

    /// Returns the clips with which a rank measures its shard, one for each group: without limits, loss scale and state.
    pub(super) fn measuring(&self) -> Vec<Operation> {
        let norm = ByNorm {
            max_norm: f32::INFINITY,
            scope: if self.norm.scope.is_together() { Scope::Global } else { Scope::Tensor },
            // The record of one rank must never change a gradient.
            non_finite: NonFinite::Skip,
            inverse_scale: 1.0,
            coefficient_only: self.norm.coefficient_only,
            count_steps: false,
            z_clip: None,
            auto_clip: None,
            skip_above: None,
            dynamic_loss_scale: None,
            ..self.norm
        };
        vec![Operation::Norm(norm); self.decisions.operations().len()]
    }
}

/// The statistics and the state of a sharded clip. They are the same on all ranks.
impl ShardedClip {
    /// Returns the statistics of each gradient over all ranks, for the last step. Empty unless the clip enables
    /// [`tensor_stats`](Clip::tensor_stats). The norm of a gradient whose scaled norm exceeds f32 on one rank is infinite.
    #[must_use]
    pub fn tensor_stats(&self) -> &[TensorStats] {
        &self.tensor_stats
    }

    /// Returns the step counts, as [`cpu::ClipPlan::step_counts`].
    #[must_use]
    pub fn step_counts(&self) -> &[StepCounts] {
        self.decisions.step_counts()
    }

    /// Returns the norm histories of a [`z_clip`](Clip::z_clip), as [`cpu::ClipPlan::histories`].
    #[must_use]
    pub fn histories(&self) -> &[NormHistory] {
        self.decisions.histories()
    }

    /// Returns the last norms of an [`auto_clip`](Clip::auto_clip), as [`cpu::ClipPlan::norm_windows`].
    #[must_use]
    pub fn norm_windows(&self) -> &[NormWindow] {
        self.decisions.norm_windows()
    }

    /// Returns the [dynamic loss scale](Clip::dynamic_loss_scale) for the loss of the next step.
    #[must_use]
    pub const fn loss_scale(&self) -> Option<&LossScale> {
        self.decisions.loss_scale()
    }

    /// Replaces the limits, one for each group, for later steps. Every rank must do so before the same step.
    ///
    /// # Errors
    ///
    /// Those of [`cpu::ClipPlan::set_max_norms`].
    pub fn set_max_norms(&mut self, max_norms: &[f32]) -> Result<(), Error> {
        self.decisions.set_max_norms(max_norms)
    }

    /// Replaces the [loss scale](Clip::loss_scale) for later steps. Every rank must do so before the same step.
    ///
    /// # Errors
    ///
    /// Those of [`cpu::ClipPlan::set_loss_scale`].
    pub fn set_loss_scale(&mut self, scale: f32) -> Result<(), Error> {
        self.decisions.set_loss_scale(scale)
    }

    /// Restores the [dynamic loss scale](Clip::dynamic_loss_scale) of a checkpoint. Every rank must restore the same state.
    ///
    /// # Errors
    ///
    /// Those of [`cpu::ClipPlan::set_dynamic_loss_scale`].
    pub fn set_dynamic_loss_scale(&mut self, scale: LossScale) -> Result<(), Error> {
        self.decisions.set_dynamic_loss_scale(scale)?;
        self.restored.loss_scale = agreement::digest_of(&scale);
        Ok(())
    }

    /// Restores the step counts of a checkpoint. Every rank must restore the same state.
    ///
    /// # Errors
    ///
    /// Those of [`cpu::ClipPlan::set_step_counts`]. If their number is not that of the records, [`join`](Self::join) fails.
    pub fn set_step_counts(&mut self, counts: &[StepCounts]) -> Result<(), Error> {
        self.decisions.set_step_counts(counts)?;
        self.restored.step_counts = agreement::digest_of(&counts);
        Ok(())
    }

    /// Restores the norm histories of a checkpoint. Every rank must restore the same state.
    ///
    /// # Errors
    ///
    /// Those of [`cpu::ClipPlan::set_histories`]. If their number is not that of the records, [`join`](Self::join) fails.
    pub fn set_histories(&mut self, histories: &[NormHistory]) -> Result<(), Error> {
        self.decisions.set_histories(histories)?;
        self.restored.histories = agreement::digest_of(&histories);
        Ok(())
    }

    /// Restores the norm windows of a checkpoint. Every rank must restore the same state.
    ///
    /// # Errors
    ///
    /// Those of [`cpu::ClipPlan::set_norm_windows`]. If their number is not that of the records, [`join`](Self::join) fails.
    pub fn set_norm_windows(&mut self, windows: &[NormWindow]) -> Result<(), Error> {
        self.decisions.set_norm_windows(windows)?;
        self.restored.norm_windows = agreement::digest_of(&windows);
        Ok(())
    }
}

/// The length of the vector with which the ranks compare their options. It is the same in every version, since the versions are
/// among the options.
const COMPARED: usize = 128;

/// The maxima that precede those of the records: whether a rank has failed, and the settings that may change.
const HEADER: usize = 1 + 2 * CHANGEABLE;

/// Returns 0, or for a rank that has failed a number that is larger the smaller the rank.
fn failure_key(failed: bool, all_reduce: &impl AllReduce) -> f64 {
    if failed { (all_reduce.size() - all_reduce.rank()) as f64 } else { 0.0 }
}

/// Returns the error of the first rank that has failed, given the maximum of all [keys](failure_key).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small integer")]
fn check_failure(key: f64, all_reduce: &impl AllReduce, own: Option<Error>) -> Result<(), Error> {
    if key == 0.0 {
        return Ok(());
    }
    let rank = all_reduce.size().saturating_sub(key as usize);
    let cause = own.filter(|_| rank == all_reduce.rank()).map(Box::new);
    Err(Error::RankFailed { rank, cause })
}

/// Returns a digest of the groups of the records of a share.
fn groups(share: &Share) -> u64 {
    let groups: Vec<u32> = share.records.iter().map(|measured| measured.unit.group).collect();
    agreement::digest(bytemuck::cast_slice(&groups))
}

/// The reason why shares could not be joined. `E` is the error of the [`AllReduce`].
#[derive(Clone, Debug, PartialEq)]
pub enum JoinError<E> {
    /// An error of the clip, the same on all ranks.
    Clip(Error),
    /// An error of the communication. Other ranks may have succeeded, or may still wait: end the job.
    AllReduce(E),
}

impl<E> From<Error> for JoinError<E> {
    fn from(error: Error) -> Self {
        Self::Clip(error)
    }
}

impl<E: fmt::Display> fmt::Display for JoinError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clip(error) => error.fmt(f),
            Self::AllReduce(error) => write!(f, "the all-reduce of a sharded clip failed: {error}"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for JoinError<E> {}
