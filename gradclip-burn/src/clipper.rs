//! `GradClipper`: the options of a clip, and the calls that clip.

use std::sync::Arc;

use burn::module::Module;
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::Device;
use gradclip::operation::Operation;
use gradclip::{Clip, ClipRecord, NonFinite};

use crate::clipped::{Clipped, Measurement};
use crate::gradients::{self, Gradient, ParameterFilter};
use crate::resolved_clip::{ResolvedClip, check_supported};
use crate::{Error, tensor_ops};

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
#[derive(Clone)]
pub struct GradClipper {
    /// The clip of the parameters in no group, followed by the clip of each group.
    clips: Vec<Clip>,
    /// The checked form of `clips`.
    operations: Vec<Operation>,
    /// The filter of each group.
    groups: Vec<ParameterFilter>,
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
    /// [`Error::Clip`] if an option is invalid; [`Error::Unsupported`] for `Clip::by_parameter_norm`,
    /// `by_supplied_norm`, `z_clip` and `count_steps`, which this package does not support.
    pub fn new(clip: Clip) -> Result<Self, Error> {
        let clips = vec![clip];
        Ok(Self {
            operations: checked(&clips)?,
            clips,
            groups: Vec::new(),
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
        self.operations = checked(&self.clips)?;
        self.groups.push(Arc::new(matches));
        Ok(self)
    }

    /// Replaces the clip of the parameters that belong to no group, for example to follow a schedule. The next clip
    /// uploads a few bytes.
    ///
    /// # Errors
    ///
    /// Those of [`group`](Self::group). The clipper is then unchanged.
    pub fn set_clip(&mut self, clip: Clip) -> Result<(), Error> {
        let clips = self.clips_with(clip);
        self.operations = checked(&clips)?;
        self.clips = clips;
        Ok(())
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
    /// operations clip them. The call does not wait for the device, except under the two policies that decide whether
    /// the optimizer steps. Under these, it reads back the records, a few words per norm, before it returns:
    ///
    /// - [`NonFinite::Skip`]: if a norm is not finite, the call removes the gradients of `module` from `gradients`. A
    ///   step of Burn's optimizer then changes neither parameters nor optimizer state, and [`Clipped::skipped`] returns
    ///   true. The whole step is skipped, even if only one of several groups is not finite.
    /// - [`NonFinite::Error`]: the call returns [`Error::NonFinite`]. The non-finite gradients are unchanged; those of
    ///   finite groups are clipped.
    ///
    /// # Errors
    ///
    /// - [`Error::Type`] and [`Error::Rank`] for a gradient that cannot be clipped; [`Error::EmptyGroup`] for a group
    ///   without a parameter; [`Error::NoGradients`] if parameters require gradients and `gradients` holds none of
    ///   them. The gradients are then unchanged.
    /// - [`Error::NonFinite`] as above.
    /// - [`Error::Backend`] if the records could not be read back.
    pub fn clip<M: Module>(&self, gradients: &mut GradientsParams, module: &M) -> Result<Clipped, Error> {
        pollster::block_on(self.clip_async(gradients, module))
    }

    /// Clips like [`clip`](Self::clip) without blocking the thread: under [`NonFinite::Skip`] and [`NonFinite::Error`]
    /// it awaits the records.
    ///
    /// # Errors
    ///
    /// Those of [`clip`](Self::clip).
    pub async fn clip_async<M: Module>(
        &self,
        gradients: &mut GradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        self.run(&self.operations, gradients, module).await
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
        pollster::block_on(self.run(&checked(&self.clips_with(clip))?, gradients, module))
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
        gradients::check(gradients.grads.iter().map(|(container, _)| container), module, &self.groups)?;
        let mut summed = gradients::sum(gradients, module);
        let clipped = self.clip(&mut summed, module);
        gradients::distribute(summed, gradients, module);
        clipped
    }

    async fn run<M: Module>(
        &self,
        operations: &[Operation],
        gradients: &mut GradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        let clipped = self.launch(operations, gradients, module)?;
        // These two policies decide whether the optimizer steps. Burn's optimizers run on the host, so the host needs
        // the records.
        let decides_step = matches!(clipped.policy(), NonFinite::Skip | NonFinite::Error);
        if decides_step && clipped.records_async().await?.iter().any(ClipRecord::skip) {
            drop(gradients::take(gradients, module, &self.groups));
            return Ok(clipped.with_step_skipped());
        }
        Ok(clipped)
    }

    /// Launches the clip without waiting for it.
    fn launch<M: Module>(
        &self,
        operations: &[Operation],
        gradients: &mut GradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        gradients::check([&*gradients], module, &self.groups)?;
        let taken = gradients::take(gradients, module, &self.groups);
        let paths: Arc<[String]> = taken.iter().map(|gradient| gradient.info.path.clone()).collect();
        let clip = Arc::new(ResolvedClip::new(operations, &taken));
        let device = || module.devices().into_iter().next().unwrap_or_default();
        let (taken, measurement) = self.dispatch(taken, &clip, device);
        for gradient in taken {
            gradient.register(gradients);
        }
        Ok(Clipped::new(measurement, paths, clip))
    }

    /// Clips gradients with the kernels if possible, and with tensor operations otherwise. `device` returns the device
    /// for the outcome of a clip without a measurement.
    #[cfg_attr(not(feature = "wgpu"), expect(clippy::unused_self, reason = "only the kernels use the cache"))]
    fn dispatch(
        &self,
        gradients: Vec<Gradient>,
        clip: &Arc<ResolvedClip>,
        device: impl FnOnce() -> Device,
    ) -> (Vec<Gradient>, Measurement) {
        #[cfg(feature = "wgpu")]
        let gradients = match crate::kernels::clip(gradients, clip, &self.cache) {
            Ok((gradients, Some(measurement))) => {
                return (gradients, Measurement::Kernels(Box::new(measurement)));
            }
            Ok((gradients, None)) => {
                return (gradients, Measurement::None { device: device(), used_kernels: true });
            }
            Err(gradients) => gradients,
        };
        match tensor_ops::clip(gradients, clip) {
            (gradients, Some(measurement)) => (gradients, Measurement::TensorOps(Box::new(measurement))),
            (gradients, None) => (gradients, Measurement::None { device: device(), used_kernels: false }),
        }
    }
}

/// Validates the clips of all groups, and checks that this package supports them.
fn checked(clips: &[Clip]) -> Result<Vec<Operation>, Error> {
    let operations = Clip::checked_groups(clips)?;
    operations.iter().try_for_each(check_supported)?;
    Ok(operations)
}
