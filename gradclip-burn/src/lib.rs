#![doc = include_str!("../README.md")]

pub use gradclip::{Clip, ClipRecord, Epsilon, NonFinite, NormType, TensorStats};

mod clipped;
mod clipper;
mod device;
mod error;
mod gradients;
mod optimizer;
mod primitive;
mod task;
mod tensor_ops;
#[cfg(feature = "train")]
mod train;

pub use clipped::Clipped;
pub use clipper::GradClipper;
pub use error::{Error, StepError};
pub use optimizer::ClippedOptimizer;
#[cfg(feature = "train")]
pub use train::{ClippedMetric, Clipping, GradNormMetric};
