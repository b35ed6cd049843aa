//! The CPU's side: the CPU path, and what this machine's cores can move at most.

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
use crate::roofline::cpu::{self as loops, Walk};
use crate::timing::{Sample, Workload};

/// The copies of a set that repetitions take in turn.
///
/// They lie in a pool so large that a cache has forgotten a copy before it is its turn again.
#[derive(Debug)]
pub struct CpuBench<'a> {
    data: &'a SetData,
    pool: &'a mut [u8],
    places: usize,
    place: usize,
    /// From one place to the next: far enough that nothing is fetched ahead.
    stride: usize,
    /// The quickest for this set.
    read: Walk,
    in_place: Walk,
}

impl<'a> CpuBench<'a> {
    /// Makes copies of more than `cold` bytes together, or one copy if that is 0.
    pub fn new(data: &'a SetData, pool: &'a mut AlignedBytes, cold: usize) -> Result<Self> {
        let bytes = data.bytes().len();
        let places = if cold == 0 { 1 } else { cold.div_ceil(bytes).max(2) };
        let needed = places * bytes;
        let available = available_memory();
        ensure!(
            available.is_none_or(|available| needed.saturating_sub(pool.bytes().len()) <= available / 10 * 9),
            "{needed} bytes of main memory are needed, but only 90 % of {} available bytes may be used",
            available.unwrap_or_default()
        );
        let pool = pool.at_least(needed);
        pool.par_chunks_mut(bytes).for_each(|place| place.copy_from_slice(data.bytes()));
        let [walk, ..] = Walk::ALL;
        let stride = coprime(places);
        let mut cpu = Self { data, pool, places, place: 0, stride, read: walk, in_place: walk };
        cpu.read = cpu.quickest(|place, walk| {
            black_box(loops::read(place, walk));
        });
        cpu.in_place = cpu.quickest(loops::in_place);
        Ok(cpu)
    }

    fn quickest(&mut self, time: impl Fn(&mut [u8], Walk)) -> Walk {
        let mut seconds = Walk::ALL.map(|walk| (f64::INFINITY, walk));
        // In turn, as everything.
        for _ in 0..3 {
            for (least, walk) in &mut seconds {
                let (_, place) = self.next();
                let start = Instant::now();
                time(place, *walk);
                *least = least.min(start.elapsed().as_secs_f64());
            }
        }
        let quickest = seconds.into_iter().min_by(|(a, _), (b, _)| a.total_cmp(b));
        quickest.map_or(Walk::ALL[0], |(_, walk)| walk)
    }

    /// Runs the operation once. Fails if the result is wrong.
    pub fn check(&mut self, op: Op) -> Result<()> {
        let data = self.data;
        let &SetData { norm, dtype, .. } = data;
        let (_, place) = self.next();
        if let Some(record) = run(op, data, place)? {
            op.check_record(&record, norm)?;
        } else {
            ensure!(op == Op::Clamp, "{}: there is no record", op.name());
        }
        let (before, after) = (self.data.bytes(), self.here());
        for range in &self.data.ranges {
            op.check_elements(dtype, &before[range.clone()], &after[range.clone()], norm)?;
        }
        self.restore();
        Ok(())
    }

    /// Times one run in the next copy.
    pub fn time(&mut self, workload: Workload) -> Result<Sample> {
        let data = self.data;
        let walks = (self.read, self.in_place);
        let (source, place) = self.next();
        let start = Instant::now();
        match workload {
            Workload::Roofline(Roofline::Read) => {
                black_box(loops::read(place, walks.0));
            }
            Workload::Roofline(Roofline::InPlace) => loops::in_place(place, walks.1),
            Workload::Roofline(Roofline::Copy) => loops::copy(source, place),
            Workload::Op(op) => {
                black_box(run(op, data, place)?);
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        if matches!(workload, Workload::Op(op) if op.changes()) {
            self.restore();
        }
        Ok(Sample { seconds, wall: seconds, encode: None, ready: None })
    }

    /// The next place, and one that is half of them away: for as long no repetition has touched it, or will.
    fn next(&mut self) -> (&[u8], &mut [u8]) {
        let bytes = self.data.bytes().len();
        self.place = (self.place + self.stride) % self.places;
        let other = (self.place + self.places / 2) % self.places * bytes;
        let place = self.place * bytes;
        let (left, right) = self.pool.split_at_mut(place.max(other));
        match other.cmp(&place) {
            Ordering::Less => (&left[other..][..bytes], &mut right[..bytes]),
            Ordering::Greater => (&right[..bytes], &mut left[place..][..bytes]),
            // There is but one.
            Ordering::Equal => (self.data.bytes(), &mut right[..bytes]),
        }
    }

    fn here(&self) -> &[u8] {
        let bytes = self.data.bytes().len();
        &self.pool[self.place * bytes..][..bytes]
    }

    fn restore(&mut self) {
        let bytes = self.data.bytes().len();
        loops::copy(self.data.bytes(), &mut self.pool[self.place * bytes..][..bytes]);
    }
}

/// What a caller of the CPU path does, list of gradients and all.
fn run(op: Op, data: &SetData, place: &mut [u8]) -> Result<Option<gradclip::ClipRecord>> {
    if op == Op::Norm && data.dtype == DType::F32 {
        let tensors: Vec<&[f32]> =
            data.ranges.iter().map(|range| bytemuck::cast_slice(&place[range.clone()])).collect();
        return Ok(Some(cpu::measure(&tensors, Op::limit(data.norm))?));
    }
    let mut gradients = gradients(data.dtype, &data.ranges, place);
    Ok(cpu::clip_all(&mut gradients, op.clip(data.norm))?.first().copied())
}

/// A number of steps that leads through all of so many places, and far each time.
fn coprime(places: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (places * 5 / 8..places).find(|&stride| gcd(stride, places) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stride_leads_through_all_places() {
        for places in 1..200 {
            let mut seen = vec![false; places];
            let stride = coprime(places);
            (0..places).for_each(|turn| seen[turn * stride % places] = true);
            assert!(seen.iter().all(|&seen| seen), "{places} places in strides of {stride}");
        }
    }
}
