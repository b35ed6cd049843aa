//! One norm for gradients that are measured in shards: by several plans, on several devices, in several processes.

mod all_reduce;
mod join;

pub use all_reduce::{AllReduce, SingleProcess};
pub use join::join_norms;
