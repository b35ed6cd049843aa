//! An optimizer that clips first.

use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};

use crate::{Clipped, Error, GradClipper};

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
    /// # Errors
    ///
    /// Those of [`GradClipper::clip`].
    pub fn step<M: Module>(
        &mut self,
        learning_rate: impl Into<ModuleLearningRate>,
        module: M,
        mut gradients: GradientsParams,
    ) -> Result<M, Error> {
        self.last = Some(self.clipper.clip(&mut gradients, &module)?);
        Ok(self.optimizer.step(learning_rate, module, gradients))
    }

    /// What the clip of the last step has measured.
    #[must_use]
    pub fn last(&self) -> Option<&Clipped> {
        self.last.as_ref()
    }
}
