//! What a clip has measured, as metrics of Burn's dashboard and logs.
//!
//! They are read on Burn's metric thread, of each step once: the training thread waits for nothing.

use std::sync::Arc;

use burn::tensor::{ExecutionError, TensorReadError};
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes, NumericEntry,
    SerializedEntry,
};

use super::steps::Steps;
use crate::{Clipped, Error};

/// What both metrics have in common: a number for each step.
#[derive(Clone)]
struct Reading {
    name: MetricName,
    unit: Option<&'static str>,
    steps: Steps,
    /// The number of the next step to be read.
    next: u64,
    /// Whether the latest item had a step.
    current: bool,
    state: NumericMetricState,
}

impl Reading {
    fn new(name: &str, unit: Option<&'static str>, steps: Steps) -> Self {
        Self {
            name: Arc::new(name.to_owned()),
            unit,
            steps,
            next: 0,
            current: false,
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
        // An item of a validation has no learning rate, and no step.
        let step = metadata.lr.is_some().then(|| self.steps.take(&mut self.next)).flatten();
        self.current = step.is_some();
        let Some(step) = step else { return Ok(SerializedEntry::not_available(self.unit)) };
        let number = number(&step).map_err(|error| ExecutionError::with_context(error.to_string()))?;
        // One norm that is not finite is shown, and does not spoil the mean of an epoch.
        self.state.update(number, usize::from(number.is_finite()));
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&self) -> SerializedEntry {
        self.state.compute_final(self.format())
    }

    fn clear(&mut self) {
        self.current = false;
        self.state.reset();
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes { unit: self.unit.map(str::to_owned), higher_is_better: false }.into()
    }

    fn value(&self) -> Option<NumericEntry> {
        self.current.then(|| self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        self.current.then(|| self.state.running_value())
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

/// The norm of a training's gradients before clipping, of each step; [`Clipping::grad_norm`](super::Clipping::grad_norm)
/// makes it, `SupervisedTraining::metric_train_numeric` registers it. The norms of several groups are joined to that of all
/// gradients.
///
/// Where gradients are accumulated, only the item that completes a step has a value. A norm that is not finite is shown, and
/// left out of the mean.
#[derive(Clone)]
pub struct GradNormMetric(Reading);

impl GradNormMetric {
    pub(super) fn of(steps: Steps) -> Self {
        Self(Reading::new("Gradient norm", None, steps))
    }
}

metric!(GradNormMetric, "The norm of the gradients before clipping", |step| {
    Ok(f64::from(gradclip::distributed::join_norms(&step.records()?, step.norm_type())))
});

/// How many of a training's gradients were clipped, in percent of the norms that each step has: of steps, where all
/// gradients have one norm. [`Clipping::clipped`](super::Clipping::clipped) makes it.
#[derive(Clone)]
pub struct ClippedMetric(Reading);

impl ClippedMetric {
    pub(super) fn of(steps: Steps) -> Self {
        Self(Reading::new("Gradients clipped", Some("%"), steps))
    }
}

metric!(ClippedMetric, "How many gradients exceeded their limit", |step| {
    let records = step.records()?;
    let clipped = records.iter().filter(|record| record.clipped()).count();
    Ok(100.0 * clipped as f64 / records.len().max(1) as f64)
});
