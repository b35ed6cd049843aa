#![doc = include_str!("../README.md")]
//!
//! # The layers of the API
//!
//! - The crate root: what a trainer on wgpu needs. [`Clipper`] prepares a [`ClipPlan`] for [`Gradient`]s in buffers and a
//!   [`Clip`]; a [`ReadBack`] returns its [`ClipRecord`].
//! - [`slices`]: calls that clip host slices, on a GPU or on the CPU.
//! - [`cpu`]: the CPU path.
//! - [`stats`]: statistics of each tensor, counts and norm histories over steps. [`loss_scale`]: a dynamic loss scale.
//! - [`distributed`]: one norm for gradients on several devices. [`adapters`]: the adapters of this machine.
//! - [`operation`] and [`wgsl`]: the checked clip and the kernels, for packages that execute them by other means than wgpu.
//!   [`mod@reference`]: the definition, for tests.
//!
//! The crates whose types appear in the API are re-exported: [`wgpu`], [`half`] and [`bytemuck`].

pub use {bytemuck, half, wgpu};

pub mod adapters;
mod clip;
pub mod cpu;
pub mod distributed;
mod dtype;
mod error;
mod float_modes;
mod gpu;
#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/embedding.md")]
pub mod guide {}
pub mod kernels;
pub mod loss_scale;
pub mod operation;
mod options;
mod record;
pub mod reference;
mod rows;
#[cfg(feature = "serde")]
mod serde_f32;
pub mod slices;
pub mod stats;
mod step_counts;
mod z_clip;

pub use clip::Clip;
pub use dtype::DType;
pub use error::{Error, GradientId};
pub use gpu::{ClipPlan, Clipper, Gradient, Parameter, ReadBack, ReadBackQueue};
pub use options::{Epsilon, NonFinite, NormType};
pub use record::{CLIP_RECORD_WGSL, ClipRecord};
pub use z_clip::ZClip;

pub(crate) use stats::{NormHistory, StepCounts, TensorStats};
