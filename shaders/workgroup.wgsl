// The number of invocations in a workgroup. Rust sets it (gpu/kernels.rs).
override WORKGROUP_SIZE: u32;
