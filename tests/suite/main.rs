//! Tests that the table of cases in `tests/conformance` does not cover: properties, stages, plans, tickets and errors.
#![expect(
    clippy::unwrap_used,
    reason = "the lint exempts test functions, but not the helpers that they call"
)]

mod clip_record_wgsl;
mod columns;
#[path = "../common/mod.rs"]
mod common;
mod compute_pass;
mod constructors;
mod determinism;
mod device_choice;
mod device_lost;
mod distributed;
mod encode;
mod guards;
mod layout;
mod long_tiles;
mod loss_scale;
mod optimizers;
mod parts;
mod pipeline_cache;
mod producers;
mod properties;
mod read_back;
mod read_back_queue;
mod read_back_threads;
mod rebind;
#[cfg(feature = "serde")]
mod serialization;
mod slices;
mod stages;
mod tensor_stats;
mod unaligned_halves;
mod update;
mod validation;
mod wgsl_arithmetic;

use std::sync::LazyLock;

use common::gpu::{Gpu, adapters};
use gradclip::wgpu;

/// Returns the best adapter with wgpu's default limits, which most tests share.
fn gpu() -> &'static Gpu {
    static GPU: LazyLock<Gpu> = LazyLock::new(|| gpu_with(|_| {}));
    &GPU
}

/// Opens the best adapter with other limits.
fn gpu_with(change: impl FnOnce(&mut wgpu::Limits)) -> Gpu {
    let mut limits = wgpu::Limits::default();
    change(&mut limits);
    Gpu::open(&adapters()[0], limits)
}

/// Asserts equality up to a relative error of 1e-6.
#[track_caller]
fn assert_near(x: f32, expected: impl Into<f64>) {
    let expected = expected.into();
    assert!((f64::from(x) - expected).abs() <= 1e-6 * expected.abs(), "{x}, not {expected}");
}
