//! Checks and times the operations on the CPU path, and the CPU rooflines, on one set.

use std::cmp::Ordering;
use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use gradclip::{DType, cpu};
use rayon::prelude::*;

use crate::data::{AlignedBytes, SetData, gradients};
use crate::machine::available_memory;
use crate::ops::Op;
use crate::roofline::Roofline;
use crate::roofline::cpu::{self as roofline, Walk};
use crate::timing::{Sample, Workload};

/// A set on the CPU path, with the copies that repetitions use in turn.
///
/// The pool of copies exceeds the caches: a copy has been evicted before its next turn.
#[derive(Debug)]
pub struct CpuBench<'a> {
    data: &'a SetData,
    pool: &'a mut [u8],
    copies: usize,
    index: usize,
    /// The distance between consecutive repetitions' copies: too large for the hardware prefetcher.
    stride: usize,
    /// The fastest walk of each roofline for this set.
    read: Walk,
    in_place: Walk,
}

impl<'a> CpuBench<'a> {
    /// Creates copies of at least `cold_bytes` bytes in total, or one copy if `cold_bytes` is 0.
    ///
    /// Fails if they exceed 90 % of the available memory.
    pub fn new(data: &'a SetData, pool: &'a mut AlignedBytes, cold_bytes: usize) -> Result<Self> {
        let bytes = data.bytes().len();
        let copies = if cold_bytes == 0 { 1 } else { cold_bytes.div_ceil(bytes).max(2) };
        let needed = copies * bytes;
        let available = available_memory();
        ensure!(
            available.is_none_or(|available| needed.saturating_sub(pool.bytes().len()) <= available / 10 * 9),
            "the benchmark needs {needed} bytes of main memory, but may use only 90 % of the {} bytes available",
            available.unwrap_or_default()
        );
        let pool = pool.at_least(needed);
        pool.par_chunks_mut(bytes).for_each(|copy| copy.copy_from_slice(data.bytes()));
        let [walk, ..] = Walk::ALL;
        let stride = coprime_stride(copies);
        let mut cpu = Self { data, pool, copies, index: 0, stride, read: walk, in_place: walk };
        cpu.read = cpu.fastest_walk(|copy, walk| {
            black_box(roofline::read(copy, walk));
        });
        cpu.in_place = cpu.fastest_walk(roofline::in_place);
        Ok(cpu)
    }

    /// Times every walk three times and returns the fastest one.
    fn fastest_walk(&mut self, time: impl Fn(&mut [u8], Walk)) -> Walk {
        let mut seconds = Walk::ALL.map(|walk| (f64::INFINITY, walk));
        // The walks take turns, as all measurements do.
        for _ in 0..3 {
            for (least, walk) in &mut seconds {
                let (_, copy) = self.next();
                let start = Instant::now();
                time(copy, *walk);
                *least = least.min(start.elapsed().as_secs_f64());
            }
        }
        let fastest_walk = seconds.into_iter().min_by(|(a, _), (b, _)| a.total_cmp(b));
        fastest_walk.map_or(Walk::ALL[0], |(_, walk)| walk)
    }

    /// Runs the operation once and checks the result.
    pub fn check(&mut self, op: Op) -> Result<()> {
        let data = self.data;
        let &SetData { norm, dtype, .. } = data;
        let (_, copy) = self.next();
        if let Some(record) = run(op, data, copy)? {
            op.check_record(&record, norm)?;
        } else {
            ensure!(op == Op::Clamp, "{}: the clip returned no record", op.name());
        }
        let (before, after) = (self.data.bytes(), self.current());
        for range in &self.data.ranges {
            op.check_elements(dtype, &before[range.clone()], &after[range.clone()], norm)?;
        }
        self.restore();
        Ok(())
    }

    /// Times one run on the next copy.
    pub fn time(&mut self, workload: Workload) -> Result<Sample> {
        let data = self.data;
        let walks = (self.read, self.in_place);
        let (source, copy) = self.next();
        let start = Instant::now();
        match workload {
            Workload::Roofline(Roofline::Read) => {
                black_box(roofline::read(copy, walks.0));
            }
            Workload::Roofline(Roofline::InPlace) => roofline::in_place(copy, walks.1),
            Workload::Roofline(Roofline::Copy) => roofline::copy(source, copy),
            Workload::Op(op) => {
                black_box(run(op, data, copy)?);
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        if matches!(workload, Workload::Op(op) if op.changes()) {
            self.restore();
        }
        Ok(Sample { seconds, wall: seconds, encode: None, ready: None })
    }

    /// Advances to the next copy. Returns the coldest copy, which is half a round away, and the next one.
    fn next(&mut self) -> (&[u8], &mut [u8]) {
        let bytes = self.data.bytes().len();
        self.index = (self.index + self.stride) % self.copies;
        let other = (self.index + self.copies / 2) % self.copies * bytes;
        let copy = self.index * bytes;
        let (left, right) = self.pool.split_at_mut(copy.max(other));
        match other.cmp(&copy) {
            Ordering::Less => (&left[other..][..bytes], &mut right[..bytes]),
            Ordering::Greater => (&right[..bytes], &mut left[copy..][..bytes]),
            // The pool has one copy.
            Ordering::Equal => (self.data.bytes(), &mut right[..bytes]),
        }
    }

    fn current(&self) -> &[u8] {
        let bytes = self.data.bytes().len();
        &self.pool[self.index * bytes..][..bytes]
    }

    fn restore(&mut self) {
        let bytes = self.data.bytes().len();
        roofline::copy(self.data.bytes(), &mut self.pool[self.index * bytes..][..bytes]);
    }
}

/// Runs the operation as a caller of the CPU path does, including building the list of gradients.
fn run(op: Op, data: &SetData, copy: &mut [u8]) -> Result<Option<gradclip::ClipRecord>> {
    if op == Op::Norm && data.dtype == DType::F32 {
        let tensors: Vec<&[f32]> =
            data.ranges.iter().map(|range| bytemuck::cast_slice(&copy[range.clone()])).collect();
        return Ok(Some(cpu::measure(&tensors, Op::limit(data.norm))?));
    }
    let mut gradients = gradients(data.dtype, &data.ranges, copy);
    Ok(cpu::clip(&mut gradients, op.clip(data.norm))?.first().copied())
}

/// Returns a stride coprime to `count`, so that it visits all copies. It is at least 5/8 of `count` where possible.
fn coprime_stride(count: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (count * 5 / 8..count).find(|&stride| gcd(stride, count) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stride_visits_all_copies() {
        for copies in 1..200 {
            let mut seen = vec![false; copies];
            let stride = coprime_stride(copies);
            (0..copies).for_each(|turn| seen[turn * stride % copies] = true);
            assert!(seen.iter().all(|&seen| seen), "{copies} copies in strides of {stride}");
        }
    }
}
