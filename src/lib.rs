//! stub
mod clip;
mod error;
mod record;
pub mod cpu;
pub mod reference;
pub use clip::Clip;
pub use error::Error;
pub use record::{ClipRecord, RECORD_WGSL};
