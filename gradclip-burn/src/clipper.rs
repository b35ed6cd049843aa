//! How gradients are to be clipped, and the clip.

use std::sync::Arc;

use burn::module::Module;
use burn::optim::{GradientsParams, MultiGradientsParams};
use gradclip::operation::Operation;
use gradclip::{Clip, ClipRecord, NonFinite};

use crate::clipped::Source;
use crate::gradients::{self, Gradient};
use crate::task::{Member, Task, supported};
use crate::{Clipped, Error, tensor_ops};

/// Which parameters belong to a group, by their path.
pub(crate) type Matches = Arc<dyn Fn(&str) -> bool + Send + Sync>;

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
/// let norm = clipped.norm(); // a tensor; nobody has waited for it
/// # Ok(())
/// # }
/// ```
///
/// Make one and keep it: it caches the tables that the shapes of a model need on the device, and clones share the cache. One
/// clipper serves any number of models, devices and threads.
#[derive(Clone)]
pub struct GradClipper {
    /// Of what belongs to no group, and of each group: what was asked for, and the same checked.
    clips: Vec<Clip>,
    operations: Vec<Operation>,
    /// Which parameters belong to the groups.
    groups: Vec<Matches>,
    #[cfg(feature = "wgpu")]
    cache: crate::device::Cache,
}

impl std::fmt::Debug for GradClipper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GradClipper").field("clips", &self.clips).finish_non_exhaustive()
    }
}

impl GradClipper {
    /// Clips as `clip` says: by global norm, by value, or each gradient by its own norm.
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
    /// [`Error::Clip`] if an option is invalid; [`Error::Unsupported`] for `Clip::by_parameter_norm`, `by_supplied_norm`,
    /// `z_clip` and `count_steps`, which this package does not support.
    pub fn new(clip: Clip) -> Result<Self, Error> {
        let clips = vec![clip];
        Ok(Self {
            operations: checked(&clips)?,
            clips,
            groups: Vec::new(),
            #[cfg(feature = "wgpu")]
            cache: crate::device::Cache::default(),
        })
    }

    /// Scales all gradients by one factor, so that their joint norm is at most `max_norm`:
    /// `torch.nn.utils.clip_grad_norm_`, [`Clip::by_global_norm`].
    ///
    /// # Errors
    ///
    /// If `max_norm` is negative or NaN.
    pub fn by_global_norm(max_norm: f32) -> Result<Self, Error> {
        Self::new(Clip::by_global_norm(max_norm))
    }

    /// Clamps every element to `-clip_value..=clip_value`: `torch.nn.utils.clip_grad_value_`, [`Clip::by_value`].
    ///
    /// # Errors
    ///
    /// If `clip_value` is negative or NaN.
    pub fn by_value(clip_value: f32) -> Result<Self, Error> {
        Self::new(Clip::by_value(clip_value))
    }

    /// Adds a group: the parameters whose path satisfies `matches`, with a norm and a limit of their own. A path is that of
    /// Burn's modules, as in `encoder.layers.0.weight`. A parameter belongs to the first group that matches its path, and to
    /// the clip of [`new`](Self::new) if none does. [`clip`](Self::clip) returns [`Error::EmptyGroup`] for a module without a
    /// parameter in the group.
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
    /// Those of [`new`](Self::new), and if `clip` differs from that of the clipper in more than its limit.
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

    /// Replaces the clip of the parameters that belong to no group, for a limit that follows a schedule. It costs the upload of
    /// a few bytes.
    ///
    /// # Errors
    ///
    /// Those of [`group`](Self::group). The clipper stays as it was.
    pub fn set_clip(&mut self, clip: Clip) -> Result<(), Error> {
        let clips = self.with(clip);
        self.operations = checked(&clips)?;
        self.clips = clips;
        Ok(())
    }

    /// Its clips, with another one for what belongs to no group.
    fn with(&self, clip: Clip) -> Vec<Clip> {
        [clip].into_iter().chain(self.clips[1..].iter().copied()).collect()
    }

    /// Clips the gradients of `module`, and leaves them in `gradients`. Tied parameters count once; those without a gradient
    /// are left out; gradients of other modules stay as they are.
    ///
    /// On Burn's wgpu runtime, with this package's feature `wgpu`, gradclip's kernels clip them in Burn's own stream and memory:
    /// in place, or in a copy if another tensor shares the memory. Elsewhere Burn's tensor operations clip them. The call reads
    /// nothing back and does not wait, except under two policies for non-finite gradients, which decide whether there is a
    /// step. Both read the records back, some words for each norm, before they return:
    ///
    /// - [`NonFinite::Skip`]: if a norm is not finite, the call removes the gradients of `module` from `gradients`. A step of
    ///   Burn's optimizer then changes neither parameters nor its own state, and [`Clipped::skipped`] is true. The whole step
    ///   is left out, even if only one of several groups is not finite.
    /// - [`NonFinite::Error`]: the call returns [`Error::NonFinite`]. The non-finite gradients are unchanged; those of finite
    ///   groups are clipped.
    ///
    /// # Errors
    ///
    /// [`Error::Type`] and [`Error::Rank`] for a gradient that cannot be clipped; [`Error::EmptyGroup`] for a group without a
    /// parameter; [`Error::NoGradients`] if parameters require gradients and `gradients` holds none of them. The gradients are
    /// then unchanged. [`Error::NonFinite`] as above. [`Error::Backend`] if the records could not be read back.
    pub fn clip<M: Module>(&self, gradients: &mut GradientsParams, module: &M) -> Result<Clipped, Error> {
        pollster::block_on(self.clip_async(gradients, module))
    }

    /// [`clip`](Self::clip) for callers that must not block: it awaits the records under [`NonFinite::Skip`] and
    /// [`NonFinite::Error`].
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

    /// [`clip`](Self::clip) with another clip for the parameters that belong to no group, in this call only.
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
        pollster::block_on(self.run(&checked(&self.with(clip))?, gradients, module))
    }

    /// Clips the gradients that several devices have of `module`: they are summed first, parameter by parameter, as Burn's
    /// optimizer would do it, and their sums clipped together. The sums are left in `gradients`, each on a device of its own
    /// choice: what `ModuleOptimizer::step_multi` takes.
    ///
    /// # Errors
    ///
    /// Those of [`clip`](Self::clip). After [`Error::NonFinite`] and [`Error::Backend`], `gradients` holds the sums; after other
    /// errors it is unchanged.
    pub fn clip_multi<M: Module>(
        &self,
        gradients: &mut MultiGradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        gradients::check(gradients.grads.iter().map(|(own, _)| own), module, &self.groups)?;
        let mut summed = gradients::sum(gradients, module);
        let clipped = self.clip(&mut summed, module);
        gradients::spread(summed, gradients, module);
        clipped
    }

    async fn run<M: Module>(
        &self,
        operations: &[Operation],
        gradients: &mut GradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        let clipped = self.launch(operations, gradients, module)?;
        // These two policies decide over the step. The optimizer runs on the host, and its state with it: so must they.
        let policy = clipped.task().non_finite();
        let decides = matches!(policy, NonFinite::Skip | NonFinite::Error);
        if decides && clipped.records_async().await?.iter().any(ClipRecord::skip) {
            drop(gradients::take(gradients, module));
            return Ok(clipped.leaving_out_the_step());
        }
        Ok(clipped)
    }

    /// Launches the clip, without waiting for it.
    fn launch<M: Module>(
        &self,
        operations: &[Operation],
        gradients: &mut GradientsParams,
        module: &M,
    ) -> Result<Clipped, Error> {
        gradients::check([&*gradients], module, &self.groups)?;
        let taken = gradients::take(gradients, module);
        let paths: Arc<[String]> = taken.iter().map(|gradient| gradient.path.clone()).collect();
        let members: Vec<_> = taken
            .iter()
            .map(|gradient| Member {
                group: gradients::group_of(&gradient.path, &self.groups),
                elements: gradient.count,
            })
            .collect();
        let task = Arc::new(Task::new(operations, &members));

        let (taken, source) = self.dispatch(taken, &task);
        for gradient in taken {
            gradient.register(gradients);
        }
        let source = source.unwrap_or_else(|by_kernels| Source::Nothing {
            device: module.devices().into_iter().next().unwrap_or_default(),
            by_kernels,
        });
        Ok(Clipped::new(source, paths, task))
    }

    /// Clips these by the kernels, where they can, or else by tensor operations. If that measures nothing, says which it was.
    #[cfg_attr(
        not(feature = "wgpu"),
        expect(clippy::unused_self, reason = "only the kernels have tables that are kept")
    )]
    fn dispatch(&self, gradients: Vec<Gradient>, task: &Arc<Task>) -> (Vec<Gradient>, Result<Source, bool>) {
        #[cfg(feature = "wgpu")]
        let gradients = match crate::by_kernels::clip(gradients, task, &self.cache) {
            Ok((gradients, words)) => {
                return (gradients, words.map(|words| Source::Words(Box::new(words))).ok_or(true));
            }
            Err(gradients) => gradients,
        };
        let (gradients, measured) = tensor_ops::clip(gradients, task);
        (gradients, measured.map(|measured| Source::Operations(Box::new(measured))).ok_or(false))
    }
}

/// The checked form of the clips of groups, if all of it is supported here.
fn checked(clips: &[Clip]) -> Result<Vec<Operation>, Error> {
    let operations = Clip::checked_groups(clips)?;
    operations.iter().try_for_each(supported)?;
    Ok(operations)
}
