//! `Clipping`: a model whose gradients are clipped before each optimizer step.

use std::fmt::{self, Display};
use std::sync::Arc;

use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer, MultiGradientsParams};
use burn::tensor::Device;
use burn::train::train::WorkerFailure;
use burn::train::{InferenceStep, Interrupter, TrainOutput, TrainStep, TrainingError};

use super::metrics::{ClippedMetric, GradNormMetric};
use super::steps::Steps;
use crate::{Clipped, Error, GradClipper};

/// Wraps a model, so that Burn's `Learner` trains it with clipped gradients.
///
/// A learner passes accumulated gradients to the model's [`optimize`](TrainStep::optimize). `Clipping` clips them
/// together and passes them on to the `optimize` of the wrapped model. Everything else is delegated to the wrapped
/// model. The parameter paths and the records are the same, so checkpoints fit both models.
///
/// ```no_run
/// # use burn::optim::ModuleOptimizer;
/// # use burn::train::{Learner, LearnerModel, SupervisedTraining};
/// # use gradclip_burn::{Clipping, GradClipper};
/// # fn train<M: LearnerModel>(
/// #     training: SupervisedTraining<Clipping<M>>, model: M, optimizer: ModuleOptimizer, learning_rate: f64,
/// # ) -> Result<M, Box<dyn std::error::Error>> {
/// let model = Clipping::new(model, GradClipper::by_global_norm(1.0)?, training.interrupter());
/// let training = training.metric_train_numeric(model.grad_norm()).metric_train_numeric(model.clipped());
/// let result = training.launch(Learner::new(model, optimizer, learning_rate));
/// let model = result.model.into_inner()?;
/// # Ok(model)
/// # }
/// ```
///
/// # Limits and state
///
/// [`with_max_norm_schedule`](Self::with_max_norm_schedule) changes the limit from step to step. The clones of the
/// clipper share its [state](GradClipper#state): keep a clone to save it with a checkpoint.
///
/// With [`Clip::dynamic_loss_scale`](gradclip::Clip::dynamic_loss_scale), the `step` of the wrapped model multiplies
/// its loss by [`GradClipper::scale_loss`] of a clone, which it keeps in a field with `#[module(skip)]`. Burn's
/// `DistributedDataParallel` is not supported then: the clones of a clipper would update one scale several times in a
/// step.
///
/// # Non-finite gradients
///
/// [`NonFinite::Skip`](gradclip::NonFinite::Skip) skips the step: parameters and optimizer are unchanged.
/// [`NonFinite::Error`](gradclip::NonFinite::Error) also skips it, and stops the training with an error. Under these
/// two policies, and with [`Clip::skip_above`](gradclip::Clip::skip_above), each step waits for the device, because the
/// outcome must be known before the optimizer runs. Otherwise no step waits.
///
/// # Errors
///
/// `optimize` cannot return an error. If gradients cannot be clipped, it stops the training through the interrupter,
/// and [`into_inner`](Self::into_inner) returns the error. The optimizer makes neither this step nor a later one.
#[derive(Clone)]
pub struct Clipping<M> {
    model: M,
    clipper: GradClipper,
    steps: Steps,
    interrupter: Interrupter,
    schedule: Option<Schedule>,
    /// The number of steps whose gradients this model has clipped. Unlike `steps`, clones do not share it: with one
    /// clone per device, each makes every step.
    step: usize,
}

/// The limits of a step, given its number.
#[derive(Clone)]
enum Schedule {
    /// The limit of the parameters that belong to no group.
    One(Arc<dyn Fn(usize) -> f32 + Send + Sync>),
    /// The limits of all groups.
    All(Arc<dyn Fn(usize) -> Vec<f32> + Send + Sync>),
}

impl<M> Clipping<M> {
    /// Wraps `model` to clip its gradients with `clipper`. If they cannot be clipped, `interrupter` stops the training,
    /// and the `error` of the training result gives the reason. `SupervisedTraining::interrupter` returns the
    /// interrupter.
    #[must_use]
    pub fn new(model: M, clipper: GradClipper, interrupter: Interrupter) -> Self {
        Self { model, clipper, steps: Steps::default(), interrupter, schedule: None, step: 0 }
    }

    /// Sets the limit of each step: that of the parameters that belong to no group. `schedule` takes the number of the
    /// optimizer step, from 0. Skipped steps count; the batches of an accumulated gradient are one step. To resume a
    /// training, add the number of steps before it.
    ///
    /// A limit that is negative or NaN, or a clip by value, stops the training before the step, as
    /// [other errors](#errors) do.
    ///
    /// ```
    /// # use gradclip_burn::{Clipping, GradClipper};
    /// # use burn::train::Interrupter;
    /// # fn with_schedule<M>(model: M, interrupter: Interrupter) -> Result<Clipping<M>, gradclip_burn::Error> {
    /// let model = Clipping::new(model, GradClipper::by_global_norm(1.0)?, interrupter)
    ///     // From 1 to 0.1 within the first 1000 steps.
    ///     .with_max_norm_schedule(|step| 1.0 - 0.9 * (step as f32 / 1000.0).min(1.0));
    /// # Ok(model)
    /// # }
    /// ```
    #[must_use]
    pub fn with_max_norm_schedule(self, schedule: impl Fn(usize) -> f32 + Send + Sync + 'static) -> Self {
        Self { schedule: Some(Schedule::One(Arc::new(schedule))), ..self }
    }

    /// Sets the limits of each step, as [`GradClipper::set_max_norms`] does: first that of the parameters in no group,
    /// then one per group. Otherwise like [`with_max_norm_schedule`](Self::with_max_norm_schedule). A wrong number of
    /// limits also stops the training.
    #[must_use]
    pub fn with_max_norms_schedule(
        self,
        schedule: impl Fn(usize) -> Vec<f32> + Send + Sync + 'static,
    ) -> Self {
        Self { schedule: Some(Schedule::All(Arc::new(schedule))), ..self }
    }

    /// Creates a metric for Burn's dashboard and logs: the norm of the gradients before clipping.
    #[must_use]
    pub fn grad_norm(&self) -> GradNormMetric {
        GradNormMetric::new(self.steps.clone())
    }

    /// Creates a metric for Burn's dashboard and logs: the percentage of norms that exceeded their limits.
    #[must_use]
    pub fn clipped(&self) -> ClippedMetric {
        ClippedMetric::new(self.steps.clone())
    }

    /// Returns the outcome of the last step's clip. Clones of this model share it.
    #[must_use]
    pub fn last(&self) -> Option<Clipped> {
        self.steps.last()
    }

    /// Returns the first error, if any. The parameters are then those from before the failed step.
    #[must_use]
    pub fn error(&self) -> Option<Arc<Error>> {
        self.steps.error()
    }

    /// Returns the wrapped model.
    #[must_use]
    pub const fn inner(&self) -> &M {
        &self.model
    }

    /// Unwraps the model after a training.
    ///
    /// # Errors
    ///
    /// The [first error](Self::error), if a clip failed.
    pub fn into_inner(self) -> Result<M, Arc<Error>> {
        match self.error() {
            None => Ok(self.model),
            Some(error) => Err(error),
        }
    }

    fn map_model(self, change: impl FnOnce(M) -> M) -> Self {
        let Self { model, clipper, steps, interrupter, schedule, step } = self;
        Self { model: change(model), clipper, steps, interrupter, schedule, step }
    }

    /// Clips the gradients, and returns whether the optimizer should step.
    fn clip_before_step(&mut self, clip: impl FnOnce(&GradClipper, &M) -> Result<Clipped, Error>) -> bool {
        if self.steps.error().is_some() {
            return false;
        }
        match self.follow_schedule().and_then(|()| clip(&self.clipper, &self.model)) {
            Ok(clipped) => {
                self.step += 1;
                let skipped = clipped.skipped();
                self.steps.push(clipped);
                !skipped
            }
            Err(error) => {
                self.fail(error);
                false
            }
        }
    }

    /// Sets the limits of the next step.
    fn follow_schedule(&mut self) -> Result<(), Error> {
        match &self.schedule {
            None => Ok(()),
            Some(Schedule::One(schedule)) => self.clipper.set_max_norm(schedule(self.step)),
            Some(Schedule::All(schedule)) => self.clipper.set_max_norms(&schedule(self.step)),
        }
    }

    fn fail(&self, error: Error) {
        let error = Arc::new(error);
        let message = format!("the gradients were not clipped: {error}");
        self.steps.fail(error);
        // The only variant of Burn's error that carries a message.
        self.interrupter.fail(TrainingError::Workers(vec![WorkerFailure { device_id: 0, message }]));
    }
}

impl<M: fmt::Debug> fmt::Debug for Clipping<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clipping")
            .field("model", &self.model)
            .field("clipper", &self.clipper)
            .finish_non_exhaustive()
    }
}

/// Displays the wrapped model.
impl<M: Display> Display for Clipping<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.model.fmt(f)
    }
}

/// Delegates to the wrapped model and adds nothing to the paths.
impl<M: Module> Module for Clipping<M> {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.model.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        self.map_model(|model| model.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.map_model(|model| model.to_device(device))
    }

    fn train(self) -> Self {
        self.map_model(M::train)
    }

    fn valid(&self) -> Self {
        self.clone().map_model(|model| model.valid())
    }

    fn materialize(self) -> Self {
        self.map_model(M::materialize)
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        self.model.visit(visitor);
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        self.map_model(|model| model.map(mapper))
    }
}

impl<M: TrainStep + Module> TrainStep for Clipping<M> {
    type Input = M::Input;
    type Output = M::Output;

    fn step(&self, item: Self::Input) -> TrainOutput<Self::Output> {
        self.model.step(item)
    }

    fn optimize(
        mut self,
        optim: &mut ModuleOptimizer,
        lr_module: ModuleLearningRate,
        mut grads: GradientsParams,
    ) -> Self {
        if self.clip_before_step(|clipper, model| clipper.clip(&mut grads, model)) {
            self.map_model(|model| model.optimize(optim, lr_module, grads))
        } else {
            self
        }
    }

    fn optimize_multi(
        mut self,
        optim: &mut ModuleOptimizer,
        lr_module: ModuleLearningRate,
        mut grads: MultiGradientsParams,
    ) -> Self {
        if self.clip_before_step(|clipper, model| clipper.clip_multi(&mut grads, model)) {
            self.map_model(|model| model.optimize_multi(optim, lr_module, grads))
        } else {
            self
        }
    }
}

impl<M: InferenceStep> InferenceStep for Clipping<M> {
    type Input = M::Input;
    type Output = M::Output;

    fn step(&self, item: Self::Input) -> Self::Output {
        self.model.step(item)
    }
}
