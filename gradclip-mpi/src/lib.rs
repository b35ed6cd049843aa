#![doc = include_str!("../README.md")]

mod all_reduce;
mod run;

pub use all_reduce::MpiAllReduce;
/// rsmpi, whose communicators are part of this package's API.
pub use mpi;
pub use run::run;
