//! The CPU's side: the CPU path, and what this machine's cores can move at most.

use std::cmp::Ordering;
use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use gradclip::{DType, cpu};
use rayon::prelude::*;

use crate::loops::{self, Walk};
use crate::timing::{Roofline, Sample, Work};
use crate::workloads::{Memory, Op, Pristine, gradients};

/// The copies of a set that repetitions take in turn.
///
/// They lie in a pool so large that a cache has forgotten a copy before it is its turn again.
#[derive(Debug)]
pub struct Cpu<'a> {
    pristine: &'a Pristine,
    pool: &'a mut [u8],
    places: usize,
    place: usize,
    /// From one place to the next: far enough that nothing is fetched ahead.
    stride: usize,
    /// The quickest for this set.
    read: Walk,
    in_place: Walk,
}

impl<'a> Cpu<'a> {
    /// Makes copies of more than `cold` bytes together, or one copy if that is 0.
    pub fn new(pristine: &'a Pristine, pool: &'a mut Memory, cold: usize) -> Result<Self> {
        let bytes = pristine.bytes().len();
        let places = if cold == 0 { 1 } else { cold.div_ceil(bytes).max(2) };
        let needed = places * bytes;
        let available = available_memory();
        ensure!(
            available.is_none_or(|available| needed.saturating_sub(pool.bytes().len()) <= available / 10 * 9),
            "{needed} bytes of main memory are needed, but only 90 % of {} available bytes may be used",
            available.unwrap_or_default()
        );
        let pool = pool.at_least(needed);
        pool.par_chunks_mut(bytes).for_each(|place| place.copy_from_slice(pristine.bytes()));
        let [walk, ..] = Walk::ALL;
        let stride = coprime(places);
        let mut cpu = Self { pristine, pool, places, place: 0, stride, read: walk, in_place: walk };
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
        let pristine = self.pristine;
        let &Pristine { norm, dtype, .. } = pristine;
        let (_, place) = self.next();
        if let Some(record) = run(op, pristine, place)? {
            op.check_record(&record, norm)?;
        } else {
            ensure!(op == Op::Clamp, "{}: there is no record", op.name());
        }
        let (before, after) = (self.pristine.bytes(), self.here());
        for range in &self.pristine.ranges {
            op.check_elements(dtype, &before[range.clone()], &after[range.clone()], norm)?;
        }
        self.restore();
        Ok(())
    }

    /// Times one run in the next copy.
    pub fn time(&mut self, work: Work) -> Result<Sample> {
        let pristine = self.pristine;
        let walks = (self.read, self.in_place);
        let (source, place) = self.next();
        let start = Instant::now();
        match work {
            Work::Roofline(Roofline::Read) => {
                black_box(loops::read(place, walks.0));
            }
            Work::Roofline(Roofline::InPlace) => loops::in_place(place, walks.1),
            Work::Roofline(Roofline::Copy) => loops::copy(source, place),
            Work::Op(op) => {
                black_box(run(op, pristine, place)?);
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        if matches!(work, Work::Op(op) if op.changes()) {
            self.restore();
        }
        Ok(Sample { seconds, wall: seconds, encode: None, ready: None })
    }

    /// The next place, and one that is half of them away: for as long no repetition has touched it, or will.
    fn next(&mut self) -> (&[u8], &mut [u8]) {
        let bytes = self.pristine.bytes().len();
        self.place = (self.place + self.stride) % self.places;
        let other = (self.place + self.places / 2) % self.places * bytes;
        let place = self.place * bytes;
        let (left, right) = self.pool.split_at_mut(place.max(other));
        match other.cmp(&place) {
            Ordering::Less => (&left[other..][..bytes], &mut right[..bytes]),
            Ordering::Greater => (&right[..bytes], &mut left[place..][..bytes]),
            // There is but one.
            Ordering::Equal => (self.pristine.bytes(), &mut right[..bytes]),
        }
    }

    fn here(&self) -> &[u8] {
        let bytes = self.pristine.bytes().len();
        &self.pool[self.place * bytes..][..bytes]
    }

    fn restore(&mut self) {
        let bytes = self.pristine.bytes().len();
        loops::copy(self.pristine.bytes(), &mut self.pool[self.place * bytes..][..bytes]);
    }
}

/// What a caller of the CPU path does, list of gradients and all.
fn run(op: Op, pristine: &Pristine, place: &mut [u8]) -> Result<Option<gradclip::ClipRecord>> {
    if op == Op::Norm && pristine.dtype == DType::F32 {
        let tensors: Vec<&[f32]> =
            pristine.ranges.iter().map(|range| bytemuck::cast_slice(&place[range.clone()])).collect();
        return Ok(Some(cpu::measure(&tensors, Op::limit(pristine.norm))?));
    }
    let mut gradients = gradients(pristine.dtype, &pristine.ranges, place);
    Ok(cpu::clip(&mut gradients, op.clip(pristine.norm))?.first().copied())
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

/// Returns twice the size of the last-level cache if the system tells it, else twice what few machines exceed.
pub fn cold_bytes() -> usize {
    const UNKNOWN: usize = 128 << 20;
    let size = |index| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(path).ok()?;
        crate::bytes::parse(text.trim()).ok()
    };
    2 * (0..5).filter_map(size).max().unwrap_or(UNKNOWN)
}

/// Returns the available main memory in bytes, if the system tells it.
pub fn available_memory() -> Option<usize> {
    let about = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = about.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Returns the model of the processor, if the system tells it.
pub fn model() -> String {
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = about.lines().find_map(|line| line.strip_prefix("model name"));
    let name =
        line.and_then(|line| line.split_once(':')).map_or("unknown processor", |(_, name)| name.trim());
    name.to_owned()
}

/// Fails unless a set of so many bytes, and a copy of it to restore from, can be had.
pub fn ensure_memory(bytes: usize) -> Result<()> {
    let available = available_memory().unwrap_or(usize::MAX);
    (bytes <= available / 2).then_some(()).with_context(|| {
        format!("{bytes} bytes are needed twice in main memory, but only {available} bytes are available")
    })
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
