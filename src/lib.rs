#![doc = include_str!("../README.md")]

pub use wgpu;

mod clip;
pub mod cpu;
mod dtype;
mod error;
mod float_state;
mod gpu;
#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/embedding.md")]
pub mod guide {}
mod join;
pub mod kernels;
mod loss_scale;
mod options;
mod record;
pub mod reference;
mod rows;
mod slices;
mod stats;
mod step_counts;
mod z_clip;

pub use clip::{ByNorm, Clip, Operation, Scope};
pub use dtype::DType;
pub use error::{Error, GradientId};
pub use gpu::{
    ClipPlan, Clipper, Gradient, Parameter, ReadBack, ReadBackQueue, adapters, adapters_async, is_software,
};
pub use join::join_norms;
pub use loss_scale::{LossScale, LossScaleState, ScaleUpdate};
pub use options::{Epsilon, NonFinite, NormType};
pub use record::{CLIP_RECORD_WGSL, ClipRecord};
pub use slices::{
    Clipped, DeviceChoice, SliceClipper, SliceDevice, Timings, clip_grad_norm, clip_grad_value,
};
pub use stats::{TENSOR_STATS_WGSL, TensorStats};
pub use step_counts::StepCounts;
pub use z_clip::{NormHistory, ZClip};
