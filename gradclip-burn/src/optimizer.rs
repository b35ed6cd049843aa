//! `ClippedOptimizer`: an optimizer that clips gradients before each step.

use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};

use crate::{Clipped, GradClipper, StepError};

/// Clips gradients before each step of a Burn optimizer.
///
/// Burn clips inside its optimizers, one parameter at a time, and therefore cannot clip by global norm. This optimizer
/// clips the gradients of the whole module and then calls the Burn optimizer. Its [`step`](Self::step) takes the same
/// arguments as Burn's.
#[derive(Clone)]
pub struct ClippedOptimizer {
    /// The Burn optimizer, public for access to its record and its parameter groups.
    pub optimizer: ModuleOptimizer,
    /// The clipper that runs before each step.
    pub clipper: GradClipper,
    last: Option<Clipped>,
}

impl std::fmt::Debug for ClippedOptimizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClippedOptimizer").field("clipper", &self.clipper).finish_non_exhaustive()
    }
}

impl ClippedOptimizer {
    /// Creates an optimizer from a Burn optimizer and a clipper.
    #[must_use]
    pub fn new(optimizer: ModuleOptimizer, clipper: GradClipper) -> Self {
        Self { optimizer, clipper, last: None }
    }

    /// Clips the gradients of `module` and updates the module with them.
    ///
    /// Under [`NonFinite::Skip`](gradclip::NonFinite::Skip), a step with non-finite gradients changes neither the
    /// module nor the state of the optimizer, and [`skipped`](Clipped::skipped) of [`last`](Self::last) is true.
    /// [`Clip::skip_above`](gradclip::Clip::skip_above) skips steps with too large norms in the same way. These two
    /// options and [`NonFinite::Error`](gradclip::NonFinite::Error) wait for the device at each step, to read the
    /// records back. Otherwise no step waits.
    ///
    /// ```
    /// # use burn::{module::Module, optim::GradientsParams};
    /// # use gradclip_burn::ClippedOptimizer;
    /// # fn train<M: Module>(mut model: M, mut optimizer: ClippedOptimizer, grads: Vec<GradientsParams>) -> M {
    /// for grads in grads {
    ///     model = optimizer.step(1e-3, model, grads).unwrap_or_else(|failed| {
    ///         eprintln!("the step was not made: {failed}");
    ///         failed.module
    ///     });
    /// }
    /// # model
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`GradClipper::clip`], with the unchanged module. The state of the optimizer is unchanged too.
    pub fn step<M: Module>(
        &mut self,
        learning_rate: impl Into<ModuleLearningRate>,
        module: M,
        gradients: GradientsParams,
    ) -> Result<M, StepError<M>> {
        pollster::block_on(self.step_async(learning_rate, module, gradients))
    }

    /// Makes a [`step`](Self::step) without blocking the thread.
    ///
    /// # Errors
    ///
    /// Those of [`step`](Self::step).
    pub async fn step_async<M: Module>(
        &mut self,
        learning_rate: impl Into<ModuleLearningRate>,
        module: M,
        mut gradients: GradientsParams,
    ) -> Result<M, StepError<M>> {
        self.last = None;
        match self.clipper.clip_async(&mut gradients, &module).await {
            Ok(clipped) => {
                let skipped = clipped.skipped();
                self.last = Some(clipped);
                Ok(if skipped { module } else { self.optimizer.step(learning_rate, module, gradients) })
            }
            Err(error) => Err(StepError { module, error }),
        }
    }

    /// Returns the outcome of the last step's clip; `None` before the first step and after a failed step.
    #[must_use]
    pub fn last(&self) -> Option<&Clipped> {
        self.last.as_ref()
    }
}
