//! Gradients in shards: the joint norm of records, and the sharded clip over ranks that are threads.

mod agreement;
mod edges;
mod failures;
mod join_norms;
mod numerics;
mod ranks;
mod reproducible;
mod state;
