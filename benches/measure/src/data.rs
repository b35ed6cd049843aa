//! The elements of a set: pseudo-random values, their f64 norm and the memory that holds them.

use std::ops::Range;

use bytemuck::Pod;
use gradclip::{DType, cpu, reference};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::sets::GradientSet;

/// Bytes that one thread generates or compares at a time.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// Memory aligned for every element type.
#[derive(Debug, Default)]
pub struct AlignedBytes(Vec<u64>);

impl AlignedBytes {
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self(vec![0; bytes.div_ceil(size_of::<u64>())])
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    /// Returns the first `bytes` bytes and grows the memory if needed. The contents are unspecified.
    pub(crate) fn at_least(&mut self, bytes: usize) -> &mut [u8] {
        if self.bytes().len() < bytes {
            // The old memory is freed first: there may not be enough for both.
            self.0 = Vec::new();
            *self = Self::zeroed(bytes);
        }
        &mut self.bytes_mut()[..bytes]
    }
}

/// The original gradients of a set in one arena: pseudo-random elements, uniform in [-1, 1).
///
/// Every repetition starts from a copy of them.
#[derive(Debug)]
pub struct SetData {
    /// The element type.
    pub dtype: DType,
    pub(crate) ranges: Vec<Range<usize>>,
    memory: AlignedBytes,
    /// The global norm, in f64.
    pub norm: f64,
}

impl SetData {
    /// Generates the gradients of a set.
    pub fn new(set: &GradientSet) -> Self {
        let (ranges, bytes) = set.layout();
        let mut memory = AlignedBytes::zeroed(bytes);
        let chunks = memory.bytes_mut().par_chunks_mut(CHUNK_BYTES).enumerate();
        chunks.for_each(|(index, chunk)| fill(chunk, set.dtype, (index * CHUNK_BYTES / 2) as u64));
        let norm = norm(set.dtype, memory.bytes(), &ranges);
        Self { dtype: set.dtype, ranges, memory, norm }
    }

    /// Returns the bytes of the arena, including the padding between tensors.
    pub fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }
}

/// Fills `chunk` with pseudo-random elements of `dtype`. Element `i` depends only on `first + i`.
fn fill(chunk: &mut [u8], dtype: DType, first: u64) {
    let random = (first..).map(uniform);
    match dtype {
        DType::F32 => bytemuck::cast_slice_mut(chunk).iter_mut().zip(random).for_each(|(x, r)| *x = r),
        DType::F16 => {
            let chunk: &mut [f16] = bytemuck::cast_slice_mut(chunk);
            chunk.iter_mut().zip(random).for_each(|(x, r)| *x = f16::from_f32(r));
        }
        _ => {
            let chunk: &mut [bf16] = bytemuck::cast_slice_mut(chunk);
            chunk.iter_mut().zip(random).for_each(|(x, r)| *x = bf16::from_f32(r));
        }
    }
}

fn uniform(index: u64) -> f32 {
    // 24 bits are exact in f32.
    (random(index) >> 40) as f32 / 8_388_608.0 - 1.0
}

/// Returns `SplitMix64` of a counter, so that threads generate their chunks independently.
pub(crate) fn random(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Computes the global norm in f64 from the reference norms of chunks, in parallel.
fn norm(dtype: DType, bytes: &[u8], ranges: &[Range<usize>]) -> f64 {
    let chunks: Vec<&[u8]> =
        ranges.iter().flat_map(|range| bytes[range.clone()].chunks(CHUNK_BYTES)).collect();
    let square = |chunk: &&[u8]| {
        let norm = match dtype {
            DType::F32 => reference::total_norm(&[bytemuck::cast_slice(chunk)]),
            DType::F16 => widened_norm::<f16>(chunk),
            _ => widened_norm::<bf16>(chunk),
        };
        norm * norm
    };
    chunks.par_iter().map(square).collect::<Vec<f64>>().iter().sum::<f64>().sqrt()
}

/// Computes the norm of 16-bit elements, which f32 represents exactly.
fn widened_norm<T: Pod + Into<f32>>(chunk: &[u8]) -> f64 {
    let floats: Vec<f32> = bytemuck::cast_slice::<_, T>(chunk).iter().map(|&x| x.into()).collect();
    reference::total_norm(&[&floats])
}

/// Returns the tensors at `ranges` of `memory` as gradients for the CPU path.
pub(crate) fn gradients<'a>(
    dtype: DType,
    ranges: &[Range<usize>],
    mut memory: &'a mut [u8],
) -> Vec<cpu::Gradient<'a>> {
    let mut at = 0;
    let mut gradients = Vec::with_capacity(ranges.len());
    for range in ranges {
        let (_, rest) = memory.split_at_mut(range.start - at);
        let (tensor, rest) = rest.split_at_mut(range.len());
        (memory, at) = (rest, range.end);
        gradients.push(match dtype {
            DType::F32 => cpu::Gradient::f32(bytemuck::cast_slice_mut(tensor)),
            DType::F16 => cpu::Gradient::f16(bytemuck::cast_slice_mut(tensor)),
            _ => cpu::Gradient::bf16(bytemuck::cast_slice_mut(tensor)),
        });
    }
    gradients
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::CLIP_VALUE;
    use gradclip::Clip;

    #[test]
    fn an_arena_is_aligned_and_holds_every_tensor_once() {
        let set = GradientSet::new("odd", DType::F16, vec![1, 129, 128, 3]);
        assert_eq!(set.layout(), (vec![0..2, 256..514, 768..1024, 1024..1030], 1280));
        let data = SetData::new(&set);
        let mut copy = AlignedBytes::zeroed(data.bytes().len());
        copy.bytes_mut().copy_from_slice(data.bytes());
        let mut norms = Vec::new();
        for gradient in gradients(set.dtype, &data.ranges, copy.bytes_mut()) {
            norms.push(cpu::tensor_stats(&[gradient], Clip::by_global_norm(1.0)).unwrap()[0].norm);
        }
        let square: f64 = norms.iter().map(|&norm| f64::from(norm).powi(2)).sum();
        assert!((square.sqrt() - data.norm).abs() <= 1e-6 * data.norm, "{norms:?}");
    }

    #[test]
    fn elements_are_uniform_and_distinct() {
        let data: Vec<f32> = (0..10_000).map(uniform).collect();
        let mean: f32 = data.iter().sum::<f32>() / 10_000.0;
        let beyond = data.iter().filter(|x| x.abs() > CLIP_VALUE).count();
        assert!(mean.abs() < 0.02 && (4_800..5_200).contains(&beyond), "{mean}, {beyond}");
        let distinct: std::collections::BTreeSet<u32> = data.iter().map(|x| x.to_bits()).collect();
        assert!(distinct.len() > 9_990);
    }
}
