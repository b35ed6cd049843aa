#![doc = include_str!("../README.md")]

pub use gradclip::stats::TensorStats;
pub use gradclip::{Clip, ClipRecord, Epsilon, NonFinite, NormType};

#[cfg(feature = "wgpu")]
mod by_kernels;
mod clipped;
mod clipper;
#[cfg(feature = "wgpu")]
mod device;
mod error;
mod gradients;
mod optimizer;
#[cfg(feature = "wgpu")]
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
