//! `GradClipper`: the options of a clip, and the calls that clip.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::Module;
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::{DType, Device, Tensor};
use gradclip::loss_scale::LossScale;
use gradclip::operation::{
    Operation, check_max_norms, check_norm_histories, check_norm_windows, check_step_counts,
};
use gradclip::stats::{NormHistory, NormWindow, StepCounts};
use gradclip::{Clip, ClipRecord};

use crate::clipped::{Clipped, Measurement};
use crate::gradients::{self, Gradient, ParameterFilter, Selection, UnitFilter};
use crate::loss_scale::StoredScale;
use crate::resolved_clip::{ResolvedClip, check_supported, is_per_gradient, reads_parameters};
use crate::state::{State, Stored};
use crate::supplied_norm::SuppliedNorm;
use crate::{Error, tensor_ops};
#[cfg(feature = "wgpu")]
use crate::{device::GradientShape, kernels};

/// Clips the gradients of a module, between the backward pass and the optimizer.
///
/// ```no_run
/// # use burn::{module::Module, optim::GradientsParams};
/// # fn step(model: &impl Module, loss: burn::Tensor<1>) -> Result<(), gradclip_burn::Error> {
/// use gradclip_burn::GradClipper;
///
/// let clipper = GradClipper::by_global_norm(1.0)?; // once
///
/// let mut grads = GradientsParams::from_grads(loss.backward(), model);
/// let clipped = clipper.clip(&mut grads, model)?;
/// let norm = clipped.norm(); // a tensor on the device; the host has not waited
/// # Ok(())
/// # }
/// ```
///
/// Create one clipper and keep it: it caches tables on the device for the shapes of a model, and clones share the
/// cache. One clipper serves any number of models, devices and threads.
///
/// # State
///
/// Some options keep state from step to step. [`Clip::z_clip`] keeps a [`NormHistory`], [`Clip::auto_clip`] a
/// [`NormWindow`], and [`Clip::count_steps`] and [`Clip::skip_above`] keep [`StepCounts`]: one for each element of
/// [`Clipped::norm`]. [`Clip::dynamic_loss_scale`] keeps [`StepCounts`] and one [`LossScale`]. Such a clipper serves one
/// model. Its clones share the state, so a clone that you keep reads the state of the one that
/// [`ClippedOptimizer`](crate::ClippedOptimizer) or a `Learner` uses. A new clipper starts with an empty state.
///
/// The state stays on the device. [`norm_histories`](Self::norm_histories), [`norm_windows`](Self::norm_windows) and
/// [`step_counts`](Self::step_counts) read it as plain data for a checkpoint;
/// [`set_norm_histories`](Self::set_norm_histories), [`set_norm_windows`](Self::set_norm_windows) and
/// [`set_step_counts`](Self::set_step_counts) restore it. A clip of each gradient by its own norm that keeps state
/// needs gradients of the same parameters at every step.
///
/// # Loss scale
///
/// [`Clip::dynamic_loss_scale`] is `torch.amp.GradScaler` in two calls: [`scale_loss`](Self::scale_loss) before the
/// backward pass, and the clip after it. The clip removes the scale from the gradients, and updates the scale on the
/// device: all groups of a step count together. The [`LossScale`] in the options is that of the first step. After that,
/// only [`set_loss_scale`](Self::set_loss_scale) replaces the scale and its options; [`set_clip`](Self::set_clip) keeps
/// them. [`loss_scale`](Self::loss_scale) reads the scale for a checkpoint.
///
/// The option sets the policy [`NonFinite::Skip`](gradclip::NonFinite::Skip), under which each clip waits for the
/// device: see [`clip`](Self::clip). With another policy, and without [`Clip::skip_above`], no step waits.
///
/// # Changes of the device
///
/// If steps alternate between the kernels and tensor operations, each change waits for the device to read the state
/// back. A new length of the window ([`AutoClip::window`](gradclip::AutoClip::window)) waits once, too; the latest norms
/// stay. Otherwise no step waits.
#[derive(Clone)]
pub struct GradClipper {
    /// The clip of the parameters in no group, followed by the clip of each group.
    clips: Vec<Clip>,
    /// The checked form of `clips`.
    operations: Vec<Operation>,
    /// The filter of each group.
    groups: Vec<ParameterFilter>,
    /// Selects the gradients that are split into rows.
    rows: Option<UnitFilter>,
    /// Selects the gradients that are split into columns.
    columns: Option<UnitFilter>,
    /// The limits that replace those of `clips`, if any.
    max_norms: Vec<Option<f32>>,
    state: Arc<Mutex<State>>,
    #[cfg(feature = "wgpu")]
    cache: crate::device::TableCache,
}

impl std::fmt::Debug for GradClipper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GradClipper").field("clips", &self.clips).finish_non_exhaustive()
    }
}

impl GradClipper {
    /// Creates a clipper from a gradclip [`Clip`]: by global norm, by value, or by the norm of each gradient.
    ///
    /// ```
    /// use gradclip_burn::{Clip, GradClipper, NonFinite};
    ///
    /// let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Zero).loss_scale(1024.0);
    /// let clipper = GradClipper::new(clip)?;
    /// # Ok::<(), gradclip_burn::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Clip`] if an option is invalid; [`Error::Unsupported`] for an option that this package does not
    /// know.
    pub fn new(clip: Clip) -> Result<Self, Error> {
        let clips = vec![clip];
        Ok(Self {
            operations: checked(&clips, &[])?,
            clips,
            groups: Vec::new(),
            rows: None,
            columns: None,
            max_norms: vec![None],
            state: Arc::default(),
            #[cfg(feature = "wgpu")]
            cache: crate::device::TableCache::default(),
        })
    }

    /// Creates a clipper that scales all gradients by one factor, so that their joint norm is at most `max_norm`:
    /// [`Clip::by_global_norm`], `torch.nn.utils.clip_grad_norm_` in PyTorch.
    ///
    /// # Errors
    ///
    /// [`Error::Clip`] if `max_norm` is negative or NaN.
    pub fn by_global_norm(max_norm: f32) -> Result<Self, Error> {
        Self::new(Clip::by_global_norm(max_norm))
    }

    /// Creates a clipper that clamps every element to `-clip_value..=clip_value`: [`Clip::by_value`],
    /// `torch.nn.utils.clip_grad_value_` in PyTorch.
    ///
    /// # Errors
    ///
    /// [`Error::Clip`] if `clip_value` is negative or NaN.
    pub fn by_value(clip_value: f32) -> Result<Self, Error> {
        Self::new(Clip::by_value(clip_value))
    }

    /// Adds a group with its own norm and limit. It holds the parameters whose path satisfies `matches`. A path
    /// consists of the field names of Burn's modules, as in `encoder.layers.0.weight`. A parameter belongs to the first
    /// group that matches its path. If none does, the clip of [`new`](Self::new) applies. [`clip`](Self::clip) returns
    /// [`Error::EmptyGroup`] if the module has no parameter in the group.
    ///
    /// ```
    /// # use gradclip_burn::{Clip, GradClipper};
    /// let clipper = GradClipper::by_global_norm(1.0)?
    ///     .group(Clip::by_global_norm(0.1), |path| path.starts_with("embedding."))?;
    /// # Ok::<(), gradclip_burn::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new); [`Error::Clip`] if `clip` differs from the clipper's in more than its limit.
    pub fn group(
        mut self,
        clip: Clip,
        matches: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        self.clips.push(clip);
        self.max_norms.push(None);
        self.operations = checked(&self.clips, &self.max_norms)?;
        self.groups.push(Arc::new(matches));
        Ok(self)
    }

    /// Splits gradients into rows along their first dimension, and clips each row by its own norm. It applies to
    /// [`Clip::by_norm`], [`Clip::by_rms`] and [`Clip::by_parameter_norm`], and has no effect on other clips.
    /// `is_split` takes the path of a parameter and the shape of its gradient. A later call replaces it.
    ///
    /// Adaptive gradient clipping as in the paper ([`Clip::by_parameter_norm`]) clips the gradient of each output unit
    /// by the norm of its weights. In Burn, the rows of a convolution's weight `[out, in, ..]` are its output units.
    /// Those of a `Linear` are [`columns`](Self::columns).
    ///
    /// ```
    /// # use gradclip_burn::{Clip, GradClipper};
    /// // The filters of the convolutions; each other parameter as a whole.
    /// let clipper =
    ///     GradClipper::new(Clip::by_parameter_norm(0.01, 1e-3))?.rows(|_path, shape| shape.len() >= 3);
    /// # Ok::<(), gradclip_burn::Error>(())
    /// ```
    #[must_use]
    pub fn rows(mut self, is_split: impl Fn(&str, &[usize]) -> bool + Send + Sync + 'static) -> Self {
        self.rows = Some(Arc::new(is_split));
        self
    }

    /// Splits gradients into columns along their last dimension, and clips each column by its own norm. Otherwise like
    /// [`rows`](Self::rows). A contiguous gradient is not transposed.
    ///
    /// Burn's `Linear` stores its weight as `[in, out]`, so that its columns are its output units.
    ///
    /// ```
    /// # use gradclip_burn::{Clip, GradClipper};
    /// // The output units of the linear layers and of the convolutions.
    /// let clipper = GradClipper::new(Clip::by_parameter_norm(0.01, 1e-3))?
    ///     .columns(|path, shape| path.contains("linear") && shape.len() == 2)
    ///     .rows(|_path, shape| shape.len() >= 3);
    /// # Ok::<(), gradclip_burn::Error>(())
    /// ```
    ///
    /// A gradient has rows or columns: [`clip`](Self::clip) returns [`Error::RowsAndColumns`] for one that both select.
    #[must_use]
    pub fn columns(mut self, is_split: impl Fn(&str, &[usize]) -> bool + Send + Sync + 'static) -> Self {
        self.columns = Some(Arc::new(is_split));
        self
    }

    /// Replaces the clip of the parameters that belong to no group. The next clip uploads a few bytes.
    ///
    /// # Errors
    ///
    /// Those of [`group`](Self::group). The clipper is then unchanged.
    pub fn set_clip(&mut self, clip: Clip) -> Result<(), Error> {
        let clips = self.clips_with(clip);
        let max_norms = self.group_max_norms();
        self.operations = checked(&clips, &max_norms)?;
        self.clips = clips;
        self.max_norms = max_norms;
        Ok(())
    }

    /// Replaces the limits for later steps, for example to follow a schedule: first that of the parameters in no group,
    /// then one per group. The next clip uploads a few bytes.
    ///
    /// ```
    /// # use gradclip_burn::{Clip, GradClipper};
    /// let mut clipper = GradClipper::by_global_norm(1.0)?
    ///     .group(Clip::by_global_norm(0.1), |path| path.starts_with("embedding."))?;
    /// for step in 0_u16..100 {
    ///     let warm_up = f32::from(step.min(10)) / 10.0;
    ///     clipper.set_max_norms(&[1.0 - 0.5 * warm_up, 0.1])?;
    ///     // ... clip and step
    /// }
    /// # Ok::<(), gradclip_burn::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Clip`] with `MaxNorm` if a limit is negative or NaN, with `LimitCount` if the number of limits is not 1
    /// plus the number of groups, and with `NeedsNorm` for a clip by value. The clipper is then unchanged.
    pub fn set_max_norms(&mut self, max_norms: &[f32]) -> Result<(), Error> {
        if let Some(Operation::Clamp { .. }) = self.operations.first() {
            let error = gradclip::Error::NeedsNorm { what: "set_max_norms", clip: "a clip by value" };
            return Err(error.into());
        }
        check_max_norms(max_norms, self.clips.len())?;
        self.max_norms = max_norms.iter().copied().map(Some).collect();
        set_limits(&mut self.operations, &self.max_norms);
        Ok(())
    }

    /// Replaces the limit of the parameters that belong to no group, as [`set_max_norms`](Self::set_max_norms) does.
    #[cfg(feature = "train")]
    pub(crate) fn set_max_norm(&mut self, max_norm: f32) -> Result<(), Error> {
        let limit_of = |operation: &Operation| match operation {
            Operation::Norm(norm) => norm.max_norm,
            _ => f32::INFINITY,
        };
        let groups = self.operations[1..].iter().map(limit_of);
        let max_norms: Vec<_> = [max_norm].into_iter().chain(groups).collect();
        self.set_max_norms(&max_norms)
    }

    /// Reads back the norm histories of a [`z_clip`](Clip::z_clip), one for each element of [`Clipped::norm`], for
    /// example for a checkpoint. Empty before the first clip. Waits for the device.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`].
    pub fn norm_histories(&self) -> Result<Vec<NormHistory>, Error> {
        pollster::block_on(self.norm_histories_async())
    }

    /// Reads back the [`norm_histories`](Self::norm_histories) without blocking the thread.
    ///
    /// # Errors
    ///
    /// Those of [`norm_histories`](Self::norm_histories).
    pub async fn norm_histories_async(&self) -> Result<Vec<NormHistory>, Error> {
        let stored = self.state().histories.clone();
        stored.read().await
    }

    /// Restores norm histories, one for each element of [`Clipped::norm`]. An empty slice starts again. The clones of
    /// this clipper share them.
    ///
    /// ```
    /// # use gradclip_burn::{Clip, Error, GradClipper, ZClip};
    /// # fn resume(saved: &GradClipper) -> Result<GradClipper, Error> {
    /// let clipper = GradClipper::new(Clip::by_global_norm(1.0).z_clip(ZClip::default()))?;
    /// clipper.set_norm_histories(&saved.norm_histories()?)?;
    /// # Ok(clipper)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Clip`] with `NotEnabled` without a [`z_clip`](Clip::z_clip), and with `NormHistory` for a mean or a
    /// deviation that is negative or not finite. The next clip returns `StateCount` if the number of histories is
    /// wrong.
    pub fn set_norm_histories(&self, histories: &[NormHistory]) -> Result<(), Error> {
        if !self
            .operations
            .iter()
            .any(|operation| matches!(operation, Operation::Norm(norm) if norm.z_clip.is_some()))
        {
            return Err(gradclip::Error::NotEnabled { what: "norm histories", with: "z_clip" }.into());
        }
        check_norm_histories(histories)?;
        let mut state = self.state();
        state.histories = Stored::Host(histories.to_vec());
        state.parameters = None;
        Ok(())
    }

    /// Reads back the norm windows of an [`auto_clip`](Clip::auto_clip), one for each element of [`Clipped::norm`], for
    /// example for a checkpoint. Empty before the first clip. Waits for the device.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`].
    pub fn norm_windows(&self) -> Result<Vec<NormWindow>, Error> {
        pollster::block_on(self.norm_windows_async())
    }

    /// Reads back the [`norm_windows`](Self::norm_windows) without blocking the thread.
    ///
    /// # Errors
    ///
    /// Those of [`norm_windows`](Self::norm_windows).
    pub async fn norm_windows_async(&self) -> Result<Vec<NormWindow>, Error> {
        let stored = self.state().norm_windows.clone();
        stored.read().await
    }

    /// Restores norm windows, one for each element of [`Clipped::norm`]. An empty slice starts again. The clones of
    /// this clipper share them.
    ///
    /// ```
    /// # use gradclip_burn::{AutoClip, Clip, Error, GradClipper};
    /// # fn resume(saved: &GradClipper) -> Result<GradClipper, Error> {
    /// let clip = Clip::by_global_norm(f32::INFINITY).auto_clip(AutoClip::default());
    /// let clipper = GradClipper::new(clip)?;
    /// clipper.set_norm_windows(&saved.norm_windows()?)?;
    /// # Ok(clipper)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Clip`] with `NotEnabled` without an [`auto_clip`](Clip::auto_clip), and with `NormWindow` for a window
    /// that holds more norms than the clip keeps, or a norm that is not positive and finite. The next clip returns
    /// `StateCount` if the number of windows is wrong.
    pub fn set_norm_windows(&self, windows: &[NormWindow]) -> Result<(), Error> {
        let auto_clip = self.operations.iter().find_map(|operation| match operation {
            Operation::Norm(norm) => norm.auto_clip,
            _ => None,
        });
        let Some(auto_clip) = auto_clip else {
            return Err(gradclip::Error::NotEnabled { what: "norm windows", with: "auto_clip" }.into());
        };
        check_norm_windows(windows, auto_clip)?;
        let mut state = self.state();
        state.norm_windows = Stored::Host(windows.to_vec());
        state.parameters = None;
        Ok(())
    }

    /// Reads back the counts of [`count_steps`](Clip::count_steps) or [`skip_above`](Clip::skip_above), one for each
    /// element of [`Clipped::norm`]. Empty before the first clip. Waits for the device.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`].
    pub fn step_counts(&self) -> Result<Vec<StepCounts>, Error> {
        pollster::block_on(self.step_counts_async())
    }

    /// Reads back the [`step_counts`](Self::step_counts) without blocking the thread.
    ///
    /// # Errors
    ///
    /// Those of [`step_counts`](Self::step_counts).
    pub async fn step_counts_async(&self) -> Result<Vec<StepCounts>, Error> {
        let stored = self.state().step_counts.clone();
        stored.read().await
    }

    /// Restores step counts, one for each element of [`Clipped::norm`]. An empty slice starts again. The clones of this
    /// clipper share them.
    ///
    /// # Errors
    ///
    /// [`Error::Clip`] with `NotEnabled` if the clip counts no steps, and with `StepCounts` for a largest
    /// norm that is negative or not finite. The next clip returns `StateCount` if the number of counts is wrong.
    pub fn set_step_counts(&self, counts: &[StepCounts]) -> Result<(), Error> {
        if !self
            .operations
            .iter()
            .any(|operation| matches!(operation, Operation::Norm(norm) if norm.keeps_step_counts()))
        {
            return Err(gradclip::Error::NotEnabled { what: "step counts", with: "count_steps" }.into());
        }
        check_step_counts(counts)?;
        let mut state = self.state();
        state.step_counts = Stored::Host(counts.to_vec());
        state.parameters = None;
        Ok(())
    }

    /// Multiplies a loss by the current [dynamic loss scale](Clip::dynamic_loss_scale), before its backward pass:
    /// `torch.amp.GradScaler.scale`. The next clip removes the scale from the gradients, and updates it. The host does
    /// not wait.
    ///
    /// The scale exceeds f16, so that an f16 or bf16 loss becomes an f32 loss.
    ///
    /// ```
    /// use burn::Tensor;
    /// use burn::module::Module;
    /// use burn::optim::GradientsParams;
    /// use gradclip_burn::{Clip, ClippedOptimizer, Error, GradClipper, LossScale};
    ///
    /// fn clipper() -> Result<GradClipper, Error> {
    ///     GradClipper::new(Clip::by_global_norm(1.0).dynamic_loss_scale(LossScale::default()))
    /// }
    ///
    /// fn step<M: Module>(model: M, loss: Tensor<1>, optimizer: &mut ClippedOptimizer) -> Result<M, Error> {
    ///     let scaled = optimizer.clipper.scale_loss(loss)?;
    ///     let grads = GradientsParams::from_grads(scaled.backward(), &model);
    ///     Ok(optimizer.step(1e-3, model, grads)?)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Clip`] with `NotEnabled` without a dynamic loss scale.
    pub fn scale_loss<const D: usize>(&self, loss: Tensor<D>) -> Result<Tensor<D>, Error> {
        let scale = self.loss_scale_on(&loss.device())?;
        let loss = match loss.dtype() {
            DType::F16 | DType::BF16 => loss.cast(DType::F32),
            _ => loss,
        };
        let scale = scale.cast(loss.dtype());
        Ok(loss * scale.reshape([1; D]))
    }

    /// Returns the current [dynamic loss scale](Clip::dynamic_loss_scale) as an f32 tensor with one element on a
    /// device, without autodiff. The host does not wait, unless the gradients of the last clip were on a device of
    /// another backend. [`scale_loss`](Self::scale_loss) multiplies a loss by it.
    ///
    /// # Errors
    ///
    /// [`Error::Clip`] with `NotEnabled` without a dynamic loss scale.
    pub fn loss_scale_on(&self, device: &Device) -> Result<Tensor<1>, Error> {
        let initial = self.initial_loss_scale()?;
        Ok(self.state().loss_scale.tensor(initial, &device.clone().inner()))
    }

    /// Reads back the [dynamic loss scale](Clip::dynamic_loss_scale), for example for a checkpoint or a log. Before the
    /// first clip, it is that in the options of the clip. Waits for the device.
    ///
    /// # Errors
    ///
    /// [`Error::Clip`] with `NotEnabled` without a dynamic loss scale; [`Error::Backend`].
    pub fn loss_scale(&self) -> Result<LossScale, Error> {
        pollster::block_on(self.loss_scale_async())
    }

    /// Reads back the [`loss_scale`](Self::loss_scale) without blocking the thread.
    ///
    /// # Errors
    ///
    /// Those of [`loss_scale`](Self::loss_scale).
    pub async fn loss_scale_async(&self) -> Result<LossScale, Error> {
        let initial = self.initial_loss_scale()?;
        let stored = self.state().loss_scale.clone();
        stored.read(initial).await
    }

    /// Replaces the [dynamic loss scale](Clip::dynamic_loss_scale), to restore a checkpoint. The clones of this clipper
    /// share it.
    ///
    /// ```
    /// # use gradclip_burn::{Clip, Error, GradClipper, LossScale, LossScaleState};
    /// # fn resume(saved: &GradClipper) -> Result<GradClipper, Error> {
    /// let state: LossScaleState = saved.loss_scale()?.state(); // 24 bytes of plain data
    /// let clipper = GradClipper::new(Clip::by_global_norm(1.0).dynamic_loss_scale(LossScale::default()))?;
    /// clipper.set_loss_scale(LossScale::from_state(state)?)?;
    /// # Ok(clipper)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Clip`] with `NotEnabled` without a dynamic loss scale.
    pub fn set_loss_scale(&self, scale: LossScale) -> Result<(), Error> {
        self.initial_loss_scale()?;
        self.state().loss_scale = StoredScale::Host(scale);
        Ok(())
    }

    /// Returns the dynamic loss scale in the options of the clip.
    fn initial_loss_scale(&self) -> Result<LossScale, Error> {
        let scale = self.operations.iter().find_map(|operation| match operation {
            Operation::Norm(norm) => norm.dynamic_loss_scale,
            _ => None,
        });
        let not_enabled =
            gradclip::Error::NotEnabled { what: "dynamic loss scale", with: "dynamic_loss_scale" };
        Ok(scale.ok_or(not_enabled)?)
    }

    /// Returns what a clip takes from a module and its gradients.
    fn selection(&self, operations: &[Operation]) -> Selection<'_> {
        Selection {
            groups: &self.groups,
            rows: self.rows.as_ref().filter(|_| is_per_gradient(operations)),
            columns: self.columns.as_ref().filter(|_| is_per_gradient(operations)),
            with_parameters: reads_parameters(operations),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // After a panic in a clip, the state that the clip was updating starts again.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the limits that [`set_max_norms`](Self::set_max_norms) has set for groups, without that of the
    /// parameters in no group.
    fn group_max_norms(&self) -> Vec<Option<f32>> {
        [None].into_iter().chain(self.max_norms[1..].iter().copied()).collect()
    }

    /// Returns the clips of all groups, with `clip` for the parameters in no group.
    fn clips_with(&self, clip: Clip) -> Vec<Clip> {
        [clip].into_iter().chain(self.clips[1..].iter().copied()).collect()
    }

    /// Clips the gradients of `module` in `gradients`. The gradient of tied parameters counts once. Gradients of other
    /// modules are unchanged.
    ///
    /// On Burn's wgpu runtime, with this package's feature `wgpu`, gradclip's kernels clip the gradients in Burn's
    /// stream and memory: in place, or in a copy if another tensor shares the memory. Elsewhere, Burn's tensor
    /// operations clip them. The call does not wait for the device, except under the three options that decide whether
    /// the optimizer steps. Under these, it reads back the records, a few words per norm, before it returns:
    ///
    /// - [`NonFinite::Skip`](gradclip::NonFinite::Skip): if a norm is not finite, the call removes the gradients of
    ///   `module` from `gradients`. A step of Burn's optimizer then changes neither parameters nor optimizer state, and
    ///   [`Clipped::skipped`] returns true. The whole step is skipped, even if only one of several groups is not
    ///   finite.
    /// - [`Clip::skip_above`]: if a norm exceeds the second limit, the step is skipped in the same way.
    /// - [`NonFinite::Error`](gradclip::NonFinite::Error): the call returns [`Error::NonFinite`]. The non-finite
    ///   gradients are unchanged; those of finite groups are clipped.
    ///
    /// # Errors
    ///
    /// - [`Error::Type`] and [`Error::Rank`] for a gradient that cannot be clipped; [`Error::EmptyGroup`] for a group
    ///   without a parameter; [`Error::NoGradients`] if parameters require gradients and `gradients` holds none of
    ///   them. The gradients are then unchanged.
    /// - [`Error::RowsAndColumns`] for a gradient that [`rows`](Self::rows) and [`columns`](Self::columns) both select.
    ///   The gradients are then unchanged.
    /// - [`Error::Shape`] and [`Error::ParameterType`] for a parameter that [`Clip::by_parameter_norm`] cannot measure.
    ///   The gradients are then unchanged.
    /// - [`Error::NormNotSupplied`] for [`Clip::by_supplied_norm`], which needs
    ///   [`clip_with_norm`](Self::clip_with_norm). The gradients are then unchanged.
    /// - [`Error::OtherGradients`], and [`Error::Clip`] with `StateCount`, if the state of the clipper does not fit the
    ///   gradients. These are then unchanged.
    /// - [`Error::NonFinite`] as above.
    /// - [`Error::Backend`] if the records could not be read back.
    pub fn clip<M: Module>(&self, gradients: &mut GradientsParams, module: &M) -> Result<Clipped, Error> {
        pollster::block_on(self.clip_async(gradients, module))
    }

    /// Clips like [`clip`](Self::clip) without blocking the thread: under the options
    /// that decide whether the optimizer steps, it awaits the records.
    ///
    /// # Errors
    ///
    /// Those of [`clip`](Self::clip).
    pub async fn clip_async<M: Module>(
        &self,
        gradients: &mut GradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        self.run(&self.operations, None, gradients, module).await
    }

    /// Clips like [`clip`](Self::clip), with another clip for the parameters that belong to no group. The clipper is
    /// unchanged.
    ///
    /// # Errors
    ///
    /// Those of [`group`](Self::group) and of [`clip`](Self::clip).
    pub fn clip_grad_norm<M: Module>(
        &self,
        gradients: &mut GradientsParams,
        module: &M,
        clip: Clip,
    ) -> Result<Clipped, Error> {
        let operations = checked(&self.clips_with(clip), &self.group_max_norms())?;
        pollster::block_on(self.run(&operations, None, gradients, module))
    }

    /// Clips with a norm that was measured elsewhere, for example over the shards of several processes:
    /// [`Clip::by_supplied_norm`], `torch.nn.utils.clip_grads_with_norm_` in PyTorch. All groups use this norm, without
    /// the loss scale. A tensor is not read by the host. A negative norm counts as NaN.
    ///
    /// ```
    /// # use burn::{module::Module, optim::GradientsParams};
    /// # use gradclip_burn::{Clip, Error, GradClipper};
    /// # fn step(
    /// #     shard: &impl Module,
    /// #     grads: &mut GradientsParams,
    /// #     all_reduce: impl Fn(burn::Tensor<1>) -> burn::Tensor<1>,
    /// # ) -> Result<(), Error> {
    /// let measure = GradClipper::new(Clip::by_global_norm(1.0).coefficient_only())?;
    /// let scale = GradClipper::new(Clip::by_supplied_norm(1.0))?;
    /// let norm = measure.clip(grads, shard)?.norm();
    /// let joint = all_reduce(norm.square()).sqrt();
    /// scale.clip_with_norm(grads, shard, joint)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`clip`](Self::clip); [`Error::Clip`] with `UnexpectedNorm` if the clip is not
    /// [`Clip::by_supplied_norm`]; [`Error::SuppliedNorm`] if the tensor does not have one element. The gradients are
    /// then unchanged.
    pub fn clip_with_norm<M: Module>(
        &self,
        gradients: &mut GradientsParams,
        module: &M,
        norm: impl Into<SuppliedNorm>,
    ) -> Result<Clipped, Error> {
        pollster::block_on(self.run(&self.operations, Some(norm.into()), gradients, module))
    }

    /// Sums the gradients of `module` over several devices, as Burn's optimizer does, and clips the sums together. The
    /// sums replace the gradients in `gradients`, each on the device that Burn's optimizer chooses for its parameter.
    /// Pass them to `ModuleOptimizer::step_multi`.
    ///
    /// # Errors
    ///
    /// Those of [`clip`](Self::clip). After [`Error::NonFinite`] and [`Error::Backend`], `gradients` holds the sums;
    /// after other errors it is unchanged.
    pub fn clip_multi<M: Module>(
        &self,
        gradients: &mut MultiGradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        SuppliedNorm::check(None, &self.operations)?;
        let containers = gradients.grads.iter().map(|(container, _)| container);
        gradients::check(containers, module, self.selection(&self.operations))?;
        let mut summed = gradients::sum(gradients, module);
        let clipped = self.clip(&mut summed, module);
        gradients::distribute(summed, gradients, module);
        clipped
    }

    async fn run<M: Module>(
        &self,
        operations: &[Operation],
        norm: Option<SuppliedNorm>,
        gradients: &mut GradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        let clipped = self.launch(operations, norm.as_ref(), gradients, module)?;
        // Burn's optimizers run on the host, so the host needs the records if these decide whether the optimizer steps.
        if clipped.decides_step() && clipped.records_async().await?.iter().any(ClipRecord::skip) {
            let selection =
                Selection { groups: &self.groups, rows: None, columns: None, with_parameters: false };
            drop(gradients::take(gradients, module, selection));
            return Ok(clipped.with_step_skipped());
        }
        Ok(clipped)
    }

    /// Launches the clip without waiting for it.
    fn launch<M: Module>(
        &self,
        operations: &[Operation],
        norm: Option<&SuppliedNorm>,
        gradients: &mut GradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        SuppliedNorm::check(norm, operations)?;
        let selection = self.selection(operations);
        gradients::check([&*gradients], module, selection)?;
        let taken = gradients::take(gradients, module, selection);
        let paths: Arc<[String]> = taken.iter().map(|gradient| gradient.info.path.clone()).collect();
        let clip = Arc::new(ResolvedClip::new(operations, &taken));
        let keeps_state = clip.stateful().is_some() && !taken.is_empty();
        // Locked until the new state is stored: concurrent clips add to the state one after the other.
        let mut state = keeps_state.then(|| self.state());
        let route = match Route::new(&taken, &paths, &clip, norm, state.as_deref_mut()) {
            Ok(route) => route,
            Err(error) => {
                for gradient in taken {
                    gradient.register(gradients);
                }
                return Err(error);
            }
        };
        let device = || module.devices().into_iter().next().unwrap_or_default();
        let (taken, measurement) = self.dispatch(taken, &clip, route, state.as_deref_mut(), device);
        for gradient in taken {
            gradient.register(gradients);
        }
        Ok(Clipped::new(measurement, paths, clip))
    }

    /// Clips gradients, and stores the new state. `device` returns the device for the outcome of a clip without a
    /// measurement.
    #[cfg_attr(not(feature = "wgpu"), expect(clippy::unused_self, reason = "only the kernels use the cache"))]
    fn dispatch(
        &self,
        gradients: Vec<Gradient>,
        clip: &Arc<ResolvedClip>,
        route: Route,
        state: Option<&mut State>,
        device: impl FnOnce() -> Device,
    ) -> (Vec<Gradient>, Measurement) {
        match route {
            #[cfg(feature = "wgpu")]
            Route::Kernels(shapes, mut inputs) => {
                let (gradients, measurement) =
                    kernels::clip(gradients, shapes, clip, &mut inputs, &self.cache);
                if let Some((state, norm)) = state.zip(clip.stateful()) {
                    state.store_words(norm, inputs.state);
                }
                let measurement = match measurement {
                    Some(measurement) => Measurement::Kernels(Box::new(measurement)),
                    None => Measurement::None { device: device(), used_kernels: true },
                };
                (gradients, measurement)
            }
            Route::TensorOps(mut inputs) => {
                let (gradients, measurement) = tensor_ops::clip(gradients, clip, &mut inputs);
                if let Some(state) = state {
                    state.store_tensors(inputs.state);
                }
                let measurement = match measurement {
                    Some(measurement) => Measurement::TensorOps(Box::new(measurement)),
                    None => Measurement::None { device: device(), used_kernels: false },
                };
                (gradients, measurement)
            }
        }
    }
}

/// The implementation that clips, with its inputs besides the gradients.
enum Route {
    #[cfg(feature = "wgpu")]
    Kernels(Vec<GradientShape>, Box<kernels::Inputs>),
    TensorOps(Box<tensor_ops::Inputs>),
}

impl Route {
    /// Chooses the kernels if they can clip the gradients, and tensor operations otherwise. Takes the values that the
    /// clip updates out of `state`. An error for state that does not fit leaves it unchanged.
    fn new(
        gradients: &[Gradient],
        paths: &Arc<[String]>,
        clip: &ResolvedClip,
        norm: Option<&SuppliedNorm>,
        state: Option<&mut State>,
    ) -> Result<Self, Error> {
        let records = clip.segments();
        let mut state = state.zip(clip.stateful());
        if let Some((state, norm)) = &mut state {
            state.check_counts(norm, records)?;
            if let Some(expected) = state.parameters.as_deref().filter(|expected| **expected != **paths) {
                return Err(Error::OtherGradients { expected: expected.to_vec(), given: paths.to_vec() });
            }
            state.parameters = clip.is_per_gradient().then(|| paths.clone());
        }
        // Without gradients, there is no device, and no input is used.
        let Some(device) = gradients.first().map(Gradient::device) else {
            return Ok(Self::TensorOps(Box::default()));
        };
        let supplied = norm.map(|norm| norm.on(&device));
        #[cfg(feature = "wgpu")]
        if let Some(shapes) = kernels::shapes(gradients, clip) {
            let state = state.map(|(state, norm)| state.take_words(norm, records, &device)).transpose()?;
            let inputs = kernels::Inputs { supplied, state: state.unwrap_or_default() };
            return Ok(Self::Kernels(shapes, Box::new(inputs)));
        }
        let state = state.map(|(state, norm)| state.take_tensors(norm, records, &device)).transpose()?;
        let inputs = tensor_ops::Inputs { supplied, state: state.unwrap_or_default() };
        Ok(Self::TensorOps(Box::new(inputs)))
    }
}

/// Validates the clips of all groups, and checks that this package supports them. `max_norms` replaces limits.
fn checked(clips: &[Clip], max_norms: &[Option<f32>]) -> Result<Vec<Operation>, Error> {
    let mut operations = Clip::checked_groups(clips)?;
    operations.iter().try_for_each(check_supported)?;
    set_limits(&mut operations, max_norms);
    Ok(operations)
}

/// Replaces the limits of clips by norm.
fn set_limits(operations: &mut [Operation], max_norms: &[Option<f32>]) {
    for (operation, max_norm) in operations.iter_mut().zip(max_norms) {
        if let (Operation::Norm(norm), Some(max_norm)) = (operation, max_norm) {
            norm.max_norm = *max_norm;
        }
    }
}
