//! The GPU path: gradients in wgpu buffers, clipped in the caller's command encoder.

mod clip_plan;
mod clipper;
pub(crate) mod device;
mod gradient;
mod labels;
mod layout;
mod pipeline;
mod read_back;
mod read_back_queue;
mod region;
pub(crate) mod watched;

pub use clip_plan::ClipPlan;
pub use clipper::Clipper;
pub use device::{adapters, adapters_async, is_software};
pub use gradient::{Gradient, Parameter};
pub use read_back::ReadBack;
pub use read_back_queue::ReadBackQueue;
