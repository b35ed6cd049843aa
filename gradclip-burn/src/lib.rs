#![doc = include_str!("../README.md")]

pub use gradclip::loss_scale::{LossScale, LossScaleState};
pub use gradclip::stats::{NormHistory, NormWindow, StepCounts, TensorStats};
pub use gradclip::{AutoClip, Clip, ClipRecord, Epsilon, NonFinite, NormType, ZClip};

// A module imports only modules to its left: `error`, `transfer`, `loss_scale`, `state`, `supplied_norm`, `gradients`,
// `resolved_clip`, `tensor_ops`, `device`, `backend`, `kernels`, `clipped`, `clipper`, `optimizer`, `train`.
#[cfg(feature = "wgpu")]
mod backend;
mod clipped;
mod clipper;
#[cfg(feature = "wgpu")]
mod device;
mod error;
mod gradients;
#[cfg(feature = "wgpu")]
mod kernels;
mod loss_scale;
mod optimizer;
mod resolved_clip;
mod state;
mod supplied_norm;
mod tensor_ops;
#[cfg(feature = "train")]
mod train;
mod transfer;

pub use clipped::Clipped;
pub use clipper::GradClipper;
pub use error::{Error, StepError};
pub use optimizer::ClippedOptimizer;
pub use supplied_norm::SuppliedNorm;
#[cfg(feature = "train")]
pub use train::{ClippedMetric, Clipping, GradNormMetric};
