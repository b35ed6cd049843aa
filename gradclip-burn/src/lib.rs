#![doc = include_str!("../README.md")]

pub use gradclip::{ClipRecord, Epsilon, NonFinite, NormType, TensorStats};

mod clipped;
mod clipper;
mod device;
mod error;
mod gradients;
mod optimizer;
mod primitive;
mod task;
mod tensor_ops;

pub use clipped::Clipped;
pub use clipper::GradClipper;
pub use error::Error;
pub use optimizer::ClippedOptimizer;
