//! A model whose steps begin with a clip.

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

/// A model that Burn's `Learner` trains with its gradients clipped.
///
/// A learner hands gradients to the model's [`optimize`](TrainStep::optimize) after it has accumulated them: here they are
/// clipped, all together, and then go to the `optimize` of the model within. Everything else is that of the model within,
/// the paths of its parameters and its records too, so that checkpoints of the one are checkpoints of the other.
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
/// # Gradients that are not finite
///
/// [`NonFinite::Skip`](gradclip::NonFinite::Skip) leaves the step out: parameters and optimizer are unchanged.
/// [`NonFinite::Error`](gradclip::NonFinite::Error) leaves it out too, and stops the training with an error. Under these two
/// policies each step waits for the device, since the outcome must be known before the optimizer runs. Under the other
/// policies no step waits.
///
/// # Errors
///
/// `optimize` returns none, so it stops the training by its interrupter. No step is made with gradients that were not
/// clipped, nor any after that, and [`into_inner`](Self::into_inner) is that error.
#[derive(Clone)]
pub struct Clipping<M> {
    model: M,
    clipper: GradClipper,
    steps: Steps,
    interrupter: Interrupter,
}

impl<M> Clipping<M> {
    /// `model`, whose gradients `clipper` is to clip. If they cannot be clipped, `interrupter` stops the training:
    /// `SupervisedTraining::interrupter` gives it. The `error` of the training's result then says why.
    #[must_use]
    pub fn new(model: M, clipper: GradClipper, interrupter: Interrupter) -> Self {
        Self { model, clipper, steps: Steps::default(), interrupter }
    }

    /// A metric for Burn's dashboard and logs: the norm of the gradients before clipping.
    #[must_use]
    pub fn grad_norm(&self) -> GradNormMetric {
        GradNormMetric::of(self.steps.clone())
    }

    /// A metric for Burn's dashboard and logs: how often gradients were clipped.
    #[must_use]
    pub fn clipped(&self) -> ClippedMetric {
        ClippedMetric::of(self.steps.clone())
    }

    /// What the clip of the newest step has measured. Clones of this model share it.
    #[must_use]
    pub fn last(&self) -> Option<Clipped> {
        self.steps.last()
    }

    /// The first error, if there was one: parameters are as they were before that step.
    #[must_use]
    pub fn error(&self) -> Option<Arc<Error>> {
        self.steps.error()
    }

    /// The model within.
    #[must_use]
    pub const fn inner(&self) -> &M {
        &self.model
    }

    /// The model within, at the end of a training.
    ///
    /// # Errors
    ///
    /// The [first error](Self::error), where a step could not be made: the training has stopped there.
    pub fn into_inner(self) -> Result<M, Arc<Error>> {
        match self.error() {
            None => Ok(self.model),
            Some(error) => Err(error),
        }
    }

    fn map_model(self, change: impl FnOnce(M) -> M) -> Self {
        let Self { model, clipper, steps, interrupter } = self;
        Self { model: change(model), clipper, steps, interrupter }
    }

    /// Clips by this, and says whether there is to be a step.
    fn admits(&self, clip: impl FnOnce(&GradClipper, &M) -> Result<Clipped, Error>) -> bool {
        if self.steps.error().is_some() {
            return false;
        }
        match clip(&self.clipper, &self.model) {
            Ok(clipped) => {
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

    fn fail(&self, error: Error) {
        let error = Arc::new(error);
        let message = format!("the gradients were not clipped: {error}");
        self.steps.fail(error);
        // The variant of Burn's that says so, with a message of ours.
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

/// That of the model within.
impl<M: Display> Display for Clipping<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.model.fmt(f)
    }
}

/// Without a name of its own in the paths.
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
        self,
        optim: &mut ModuleOptimizer,
        lr_module: ModuleLearningRate,
        mut grads: GradientsParams,
    ) -> Self {
        if self.admits(|clipper, model| clipper.clip(&mut grads, model)) {
            self.map_model(|model| model.optimize(optim, lr_module, grads))
        } else {
            self
        }
    }

    fn optimize_multi(
        self,
        optim: &mut ModuleOptimizer,
        lr_module: ModuleLearningRate,
        mut grads: MultiGradientsParams,
    ) -> Self {
        if self.admits(|clipper, model| clipper.clip_multi(&mut grads, model)) {
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
