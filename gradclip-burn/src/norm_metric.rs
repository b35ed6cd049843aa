//! The norm on Burn's dashboard.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorReadError};
use burn_train::metric::state::{FormatOptions, NumericMetricState};
use burn_train::metric::{
    Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes, NumericEntry, SerializedEntry,
};

use crate::Clipped;

/// The norm of the gradients before clipping, as a metric of Burn's training loop. It is read when the metric is updated, not
/// in the step.
#[derive(Clone)]
pub struct GradNormMetric {
    name: Arc<String>,
    state: NumericMetricState,
}

impl std::fmt::Debug for GradNormMetric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GradNormMetric").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a [`GradNormMetric`] is told of a step.
#[derive(Clone, Debug)]
pub struct GradNormInput(Tensor<1>);

impl From<&Clipped> for GradNormInput {
    fn from(clipped: &Clipped) -> Self {
        Self(clipped.norm())
    }
}

impl GradNormInput {
    /// A step with this [`Clipped::norm`], of which the first group is shown.
    #[must_use]
    pub fn new(norm: Tensor<1>) -> Self {
        Self(norm)
    }
}

impl Default for GradNormMetric {
    fn default() -> Self {
        Self { name: Arc::new("Gradient norm".to_owned()), state: NumericMetricState::default() }
    }
}

impl GradNormMetric {
    fn format(&self) -> FormatOptions {
        FormatOptions::new(Arc::clone(&self.name)).precision(4)
    }
}

impl Metric for GradNormMetric {
    type Input = GradNormInput;

    fn update(&mut self, input: &GradNormInput, _: &MetricMetadata) -> Result<SerializedEntry, TensorReadError> {
        let norm = input.0.clone().narrow(0, 0, 1).try_into_scalar::<f64>()?;
        self.state.update(norm, 1);
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.state.compute_final(self.format()))
    }

    fn clear(&mut self) {
        self.state.reset();
    }

    fn name(&self) -> MetricName {
        Arc::clone(&self.name)
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes { unit: None, higher_is_better: false }.into()
    }
}

impl Numeric for GradNormMetric {
    fn value(&self) -> Option<NumericEntry> {
        Some(self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(self.state.running_value())
    }

    fn final_value(&self) -> NumericEntry {
        self.state.final_value()
    }
}
