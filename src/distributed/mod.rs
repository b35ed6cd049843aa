//! One norm for gradients that are measured in shards: by several plans, on several devices, in several processes.
//!
//! ```text
//! every rank:   measure the shard ──▶ share ─┐
//!                                            ├── one all-reduce ──▶ joint record ──▶ scale the shard
//! other ranks:  measure the shard ──▶ share ─┘
//! ```
//!
//! [`ShardedClip`] has the options, the state and the collective; [`ShardPlan`] is the plan of one device. An [`AllReduce`]
//! combines plain numbers over all ranks; the package `gradclip-mpi` has the one for MPI.
//!
//! # Several devices in one process
//!
//! Each device has its own plan. One call joins all of them:
//!
//! ```
//! # let adapter = gradclip::adapters::enumerate().into_iter().next().expect("an adapter: scripts/test installs a software one");
//! # let open = || pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()));
//! # let devices = [open()?, open()?];
//! # let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
//! # let shards = [3.0_f32, 4.0].into_iter().zip(&devices).map(|(value, (device, queue))| {
//! #     let buffer = device.create_buffer(&wgpu::BufferDescriptor { label: None, size: 4, usage, mapped_at_creation: false });
//! #     queue.write_buffer(&buffer, 0, &value.to_le_bytes());
//! #     buffer
//! # }).collect::<Vec<_>>();
//! use gradclip::distributed::{ShardedClip, SingleProcess};
//! use gradclip::{Clip, Clipper, Gradient};
//!
//! let mut clip = ShardedClip::new(&[Clip::by_global_norm(1.0)])?;
//! let mut plans = Vec::new();
//! for ((device, _), shard) in devices.iter().zip(&shards) {
//!     plans.push(clip.prepare(&Clipper::new(device)?, &[Gradient::f32(shard)])?);
//! }
//! // At each step:
//! let tickets: Vec<_> = plans.iter().zip(&devices).map(|(plan, (_, queue))| plan.measure(queue)).collect();
//! let records = clip.join(tickets.into_iter().map(|ticket| ticket.wait()), &mut SingleProcess)?;
//! for (plan, (_, queue)) in plans.iter().zip(&devices) {
//!     plan.scale(queue, &records)?;
//! }
//! assert_eq!(records[0].total_norm, 5.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Accuracy
//!
//! ```text
//! total_norm = (Σ norm^p)^(1/p)        over the shares; the largest norm for p = ∞
//! ```
//!
//! It is computed in f64 from norms that are rounded to 24 bits, so it is right within one unit in the last place of an f32, also
//! for norms beyond f32. With one share it is the norm of that share. With several, its last bit may depend on how the gradients
//! are cut. L1 and L2 need only sums, products and square roots, so that all ranks compute the same bits on any processor; for other p
//! the ranks must have the same math library.

mod agreement;
mod all_reduce;
mod cpu_shard;
mod join;
mod reduction;
mod reproducible;
#[cfg(feature = "wgpu")]
mod shard_plan;
mod sharded_clip;
mod share;
mod tile_norm;

pub use all_reduce::{AllReduce, SingleProcess};
pub use join::join_norms;
#[cfg(feature = "wgpu")]
pub use reproducible::Shard;
#[cfg(feature = "wgpu")]
pub use shard_plan::{ShardPlan, ShareReadBack};
pub use sharded_clip::{JoinError, ShardedClip};
pub use share::Share;
