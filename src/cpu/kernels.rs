//! The inner loops, which process chunks of gradients on one thread.
//!
//! Each loop is written once, over independent lanes, and compiled once per instruction set and element type. An
//! instruction set decides how many lanes an instruction processes, never the result of a lane. Rust never fuses a
//! multiplication with an addition implicitly, so all instruction sets give the same bits.
//!
//! Imports run one way: [`element`] ← [`isa`] ← `avx2` ← [`dispatch`], [`traversal`] ← [`measure`](mod@measure),
//! [`update`](mod@update).
#![expect(
    clippy::inline_always,
    reason = "only inlined code is compiled for the instruction set of its caller"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
mod dispatch;
mod element;
mod isa;
mod measure;
#[cfg(test)]
mod test_values;
mod traversal;
mod update;

pub(super) use measure::{ElementCounts, count, measure};
pub(super) use update::{Update, update, update_columns};
