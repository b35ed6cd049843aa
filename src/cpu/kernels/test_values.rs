//! Test inputs shared by the kernels.

pub(super) const SPECIAL: [f32; 8] = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, f32::INFINITY, -f32::INFINITY];

/// Returns numbers of both signs over many orders of magnitude. Their sum depends on the order of addition.
pub(super) fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) * (1_u64 << (i * 31 % 41)) as f32).collect()
}
