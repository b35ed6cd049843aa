//! An optimizer that clips first.

use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};

use crate::{Clipped, GradClipper, StepError};

/// An optimizer of Burn's whose steps begin with a clip.
///
/// Burn clips inside its optimizers, where each parameter is met by itself: that cannot be by global norm. This clips the
/// gradients of the whole module, and hands them on. Its [`step`](Self::step) has the arguments of Burn's.
#[derive(Clone)]
pub struct ClippedOptimizer {
    /// The optimizer, for what it offers besides: records, groups.
    pub optimizer: ModuleOptimizer,
    /// How its gradients are clipped.
    pub clipper: GradClipper,
    last: Option<Clipped>,
}

impl std::fmt::Debug for ClippedOptimizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClippedOptimizer").field("clipper", &self.clipper).finish_non_exhaustive()
    }
}

impl ClippedOptimizer {
    /// `optimizer`, with its gradients clipped by `clipper`.
    #[must_use]
    pub fn new(optimizer: ModuleOptimizer, clipper: GradClipper) -> Self {
        Self { optimizer, clipper, last: None }
    }

    /// Clips the gradients of `module`, and updates it with them.
    ///
    /// Under [`NonFinite::Skip`](gradclip::NonFinite::Skip), gradients that are not finite leave the module and the state of
    /// the optimizer as they are: [`last`](Self::last) then says [`skipped`](Clipped::skipped). That policy and
    /// [`NonFinite::Error`](gradclip::NonFinite::Error) wait for the device at each step, to read a record back; the others do
    /// not wait.
    ///
    /// ```
    /// # use burn::{module::Module, optim::GradientsParams};
    /// # use gradclip_burn::ClippedOptimizer;
    /// # fn train<M: Module>(mut model: M, mut optimizer: ClippedOptimizer, grads: Vec<GradientsParams>) -> M {
    /// for grads in grads {
    ///     model = optimizer.step(1e-3, model, grads).unwrap_or_else(|failed| {
    ///         eprintln!("no step was made: {failed}");
    ///         failed.module
    ///     });
    /// }
    /// # model
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`GradClipper::clip`], with the module as it was. The optimizer's state is as it was, too.
    pub fn step<M: Module>(
        &mut self,
        learning_rate: impl Into<ModuleLearningRate>,
        module: M,
        gradients: GradientsParams,
    ) -> Result<M, StepError<M>> {
        pollster::block_on(self.step_async(learning_rate, module, gradients))
    }

    /// [`step`](Self::step), for callers that must not block.
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

    /// What the clip of the last step has measured; nothing after a step that failed.
    #[must_use]
    pub fn last(&self) -> Option<&Clipped> {
        self.last.as_ref()
    }
}
