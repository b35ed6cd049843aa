//! Metrics of clips for Burn's dashboard and logs.
//!
//! Burn's metric thread reads the outcome of each step once. The training thread does not wait.

use std::sync::Arc;

use burn::tensor::{ExecutionError, TensorReadError};
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes, NumericEntry,
    SerializedEntry,
};

use super::steps::Steps;
use crate::{Clipped, Error};

/// A metric with one number per step: the shared implementation of both metrics.
#[derive(Clone)]
struct StepMetric {
    name: MetricName,
    unit: Option<&'static str>,
    steps: Steps,
    /// The number of the next step to read.
    next_step: u64,
    /// Whether the latest item completed a step.
    has_value: bool,
    state: NumericMetricState,
}

impl StepMetric {
    fn new(name: &str, unit: Option<&'static str>, steps: Steps) -> Self {
        Self {
            name: Arc::new(name.to_owned()),
            unit,
            steps,
            next_step: 0,
            has_value: false,
            state: NumericMetricState::new(),
        }
    }

    fn format(&self) -> FormatOptions {
        let options = FormatOptions::new(self.name.clone()).precision(3);
        match self.unit {
            Some(unit) => options.unit(unit),
            None => options,
        }
    }

    fn update(
        &mut self,
        metadata: &MetricMetadata,
        number: impl FnOnce(&Clipped) -> Result<f64, Error>,
    ) -> Result<SerializedEntry, TensorReadError> {
        // Validation items have no learning rate and make no step.
        let step = metadata.lr.is_some().then(|| self.steps.read(&mut self.next_step)).flatten();
        self.has_value = step.is_some();
        let Some(step) = step else { return Ok(SerializedEntry::not_available(self.unit)) };
        let number = number(&step).map_err(|error| ExecutionError::with_context(error.to_string()))?;
        // A non-finite number is shown, but excluded from the mean over the epoch.
        self.state.update(number, usize::from(number.is_finite()));
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&self) -> SerializedEntry {
        self.state.compute_final(self.format())
    }

    fn clear(&mut self) {
        self.has_value = false;
        self.state.reset();
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes { unit: self.unit.map(str::to_owned), higher_is_better: false }.into()
    }

    fn value(&self) -> Option<NumericEntry> {
        self.has_value.then(|| self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        self.has_value.then(|| self.state.running_value())
    }
}

macro_rules! metric {
    ($name:ident, $description:literal, $number:expr) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }

        impl Metric for $name {
            type Input = ();

            fn name(&self) -> MetricName {
                self.0.name.clone()
            }

            fn description(&self) -> Option<String> {
                Some($description.to_owned())
            }

            fn attributes(&self) -> MetricAttributes {
                self.0.attributes()
            }

            fn update(
                &mut self,
                (): &(),
                metadata: &MetricMetadata,
            ) -> Result<SerializedEntry, TensorReadError> {
                self.0.update(metadata, $number)
            }

            fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
                Ok(self.0.compute())
            }

            fn clear(&mut self) {
                self.0.clear();
            }
        }

        impl Numeric for $name {
            fn value(&self) -> Option<NumericEntry> {
                self.0.value()
            }

            fn running_value(&self) -> Option<NumericEntry> {
                self.0.running_value()
            }

            fn final_value(&self) -> NumericEntry {
                self.0.state.final_value()
            }
        }
    };
}

/// Reports the norm of the gradients before clipping, for each step. The norms of several groups are joined into the
/// norm of all gradients. [`Clipping::grad_norm`](super::Clipping::grad_norm) creates the metric, and
/// `SupervisedTraining::metric_train_numeric` registers it.
///
/// If gradients are accumulated, only the item that completes a step has a value. A non-finite norm is shown, but
/// excluded from the mean.
#[derive(Clone)]
pub struct GradNormMetric(StepMetric);

impl GradNormMetric {
    pub(super) fn new(steps: Steps) -> Self {
        Self(StepMetric::new("Gradient norm", None, steps))
    }
}

metric!(GradNormMetric, "The norm of the gradients before clipping", |step| {
    Ok(f64::from(gradclip::distributed::join_norms(&step.records()?, step.norm_type())))
});

/// Reports, for each step, the percentage of norms that exceeded their limits. If all gradients have one norm, the mean
/// over an epoch is the percentage of clipped steps. [`Clipping::clipped`](super::Clipping::clipped) creates the
/// metric.
#[derive(Clone)]
pub struct ClippedMetric(StepMetric);

impl ClippedMetric {
    pub(super) fn new(steps: Steps) -> Self {
        Self(StepMetric::new("Gradients clipped", Some("%"), steps))
    }
}

metric!(ClippedMetric, "The percentage of norms that exceeded their limits", |step| {
    let records = step.records()?;
    let clipped = records.iter().filter(|record| record.clipped()).count();
    Ok(100.0 * clipped as f64 / records.len().max(1) as f64)
});
