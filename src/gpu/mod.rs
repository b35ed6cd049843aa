//! The GPU path: gradients in wgpu buffers, clipped in the caller's command encoder.

mod clip_plan;
mod clipper;
mod device_context;
pub(crate) mod error_scope;
mod gradient;
mod pipeline;
mod read_back;
mod read_back_queue;

pub use clip_plan::ClipPlan;
pub use clipper::Clipper;
pub use gradient::{Gradient, Parameter, Partials};
pub use read_back::ReadBack;
pub use read_back_queue::ReadBackQueue;
