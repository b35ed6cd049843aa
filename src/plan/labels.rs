//! The labels of the gradients of a plan, for errors after `prepare`.

use std::sync::Arc;

use crate::{Error, GradientId};

/// A label for each gradient; empty if no gradient has one.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels(Arc<[Option<Box<str>>]>);

impl Labels {
    pub(super) fn new<'a>(labels: impl Iterator<Item = Option<&'a str>> + Clone) -> Self {
        if labels.clone().all(|label| label.is_none()) {
            return Self::default();
        }
        Self(labels.map(|label| label.map(Box::from)).collect())
    }

    pub(super) fn get(&self, gradient: usize) -> Option<&str> {
        self.0.get(gradient)?.as_deref()
    }

    /// Adds the label to the gradient of an error that was found on the device.
    pub(super) fn name(&self, error: Error) -> Error {
        match error {
            Error::NonFinite { gradient: Some(GradientId { index, .. }), total_norm, record } => {
                let gradient = Some(GradientId::new(index, self.get(index)));
                Error::NonFinite { gradient, total_norm, record }
            }
            Error::PartMissing { gradient: GradientId { index, .. } } => {
                Error::PartMissing { gradient: GradientId::new(index, self.get(index)) }
            }
            other => other,
        }
    }
}
