//! stub
pub use wgpu;
mod clip;
pub mod cpu;
mod error;
mod gpu;
mod record;
pub mod reference;
mod slices;
pub use clip::Clip;
pub use error::Error;
pub use gpu::*;
pub use record::{ClipRecord, RECORD_WGSL};
pub use slices::*;
