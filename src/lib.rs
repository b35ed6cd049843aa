#![doc = include_str!("../docs/crate.md")]
#![cfg_attr(
    not(feature = "wgpu"),
    allow(
        dead_code,
        unused_imports,
        reason = "host slices and sharded clips, which need wgpu, call more of the crate"
    )
)]

#[cfg(feature = "wgpu")]
pub use wgpu;
pub use {bytemuck, half};

#[cfg(feature = "wgpu")]
pub mod adapters;
mod auto_clip;
mod clip;
pub mod cpu;
pub mod distributed;
mod dtype;
mod error;
mod extended;
mod float_modes;
#[cfg(feature = "wgpu")]
mod gpu;
#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/embedding.md")]
pub mod guide {}
/// Doctests for the snippets of Markdown pages that are not part of the documentation.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    mod readme {}
    #[doc = include_str!("../docs/extending.md")]
    mod extending {}
}
pub mod kernels;
pub mod loss_scale;
pub mod operation;
mod options;
#[cfg(feature = "wgpu")]
pub mod panics;
pub mod plan;
mod record;
pub mod reference;
mod rows;
#[cfg(feature = "serde")]
mod serde_f32;
mod shown;
#[cfg(feature = "wgpu")]
pub mod slices;
pub mod stats;
mod step_counts;
mod z_clip;

pub use auto_clip::AutoClip;
pub use clip::Clip;
pub use dtype::DType;
pub use error::{Error, GradientId};
#[cfg(feature = "wgpu")]
pub use gpu::{ClipPlan, Clipper, Gradient, Parameter, Partials, ReadBack, ReadBackQueue};
pub use options::{Epsilon, NonFinite, NormType};
pub use record::{CLIP_RECORD_WGSL, ClipRecord};
pub use z_clip::ZClip;

pub(crate) use stats::{NormHistory, NormWindow, StepCounts, TensorStats};
