//! What the table of conformance cannot say: what holds for all gradients, what is dangerous, and what goes wrong.
#![expect(clippy::unwrap_used, reason = "the lint knows tests by their attribute, and not what they call")]

mod api;
#[path = "../common/mod.rs"]
mod common;
mod errors;
mod hazards;
mod neighbours;
mod properties;
mod read_back_queue;
mod rounding;
mod slices;
mod steps;
mod tensors;
mod words;

use std::sync::LazyLock;

use common::Gpu;
use gradclip::wgpu;

/// The best adapter with wgpu's default limits, for all tests that want nothing else.
fn gpu() -> &'static Gpu {
    static GPU: LazyLock<Gpu> = LazyLock::new(|| gpu_with(|_| {}));
    &GPU
}

/// The best adapter with other limits.
fn gpu_with(change: impl FnOnce(&mut wgpu::Limits)) -> Gpu {
    let mut limits = wgpu::Limits::default();
    change(&mut limits);
    Gpu::open(&common::adapters()[0], limits)
}
