//! Checks and times the operations on the GPU path, and the GPU rooflines, on one set.

use std::ops::Range;
use std::time::Instant;

use anyhow::{Result, ensure};
use gradclip::{Clip, ClipPlan, Error, Gradient, wgpu};
use wgpu::{Buffer, CommandEncoder};

use crate::data::SetData;
use crate::device::{GpuDevice, STAGING, allocate, largest_buffer};
use crate::ops::Op;
use crate::report::PlanCost;
use crate::roofline::Roofline;
use crate::roofline::gpu::BoundBuffers;
use crate::statistics::Quartiles;
use crate::timing::{Sample, Workload};

/// The maximum number of bytes that a check reads back. Larger sets are sampled evenly.
const MAX_CHECKED_BYTES: usize = 256 << 20;
/// The number of repeated preparations of a plan that are timed.
const PREPARATIONS: usize = 9;

/// The memory layout of a set on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All tensors in one buffer, or in as few as the device's limits allow.
    Arena,
    /// One buffer per tensor.
    Separate,
    /// One buffer per tensor, bound as an array.
    Array,
}

impl Layout {
    /// Returns the name that the report uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Arena => "arena",
            Self::Separate => "separate",
            Self::Array => "array",
        }
    }
}

/// A set on the device, with the plans of all operations.
#[derive(Debug)]
pub struct GpuBench<'a> {
    gpu: &'a GpuDevice,
    data: &'a SetData,
    cached: bool,
    /// The original gradients, in as few buffers as the device's limits allow.
    originals: Vec<Buffer>,
    arena: Vec<Buffer>,
    read: (BoundBuffers, usize),
    in_place: (BoundBuffers, usize),
    layouts: Vec<LayoutBuffers>,
}

/// The gradients of one layout, which repetitions change, and their plans.
#[derive(Debug)]
struct LayoutBuffers {
    layout: Layout,
    /// The copies that restore the gradients.
    copies: Vec<CopyRange>,
    tensors: Vec<TensorRange>,
    plans: Vec<OpPlan>,
}

/// A copy from a buffer of originals to a buffer of the layout, each with its offset.
#[derive(Debug)]
struct CopyRange {
    from: (Buffer, u64),
    to: (Buffer, u64),
    bytes: u64,
}

/// The buffer and byte range of a tensor.
#[derive(Debug)]
struct TensorRange {
    buffer: Buffer,
    bytes: Range<u64>,
}

/// The plan of an operation.
#[derive(Debug)]
struct OpPlan {
    op: Op,
    plan: ClipPlan,
    /// The time to prepare the plan again, with all kernels compiled.
    prepare: Quartiles,
}

impl<'a> GpuBench<'a> {
    /// Uploads a set in `layouts` and prepares a plan for every operation.
    pub fn new(gpu: &'a GpuDevice, data: &'a SetData, cached: bool, layouts: &[Layout]) -> Result<Self> {
        let chunks = chunks(data, largest_buffer(&gpu.device))?;
        let sizes: Vec<usize> = chunks.iter().map(Range::len).collect();
        let originals = allocate(&gpu.device, &sizes)?;
        for (chunk, buffer) in chunks.iter().zip(&originals) {
            gpu.write(buffer, &data.bytes()[chunk.clone()])?;
        }
        let arena = allocate(&gpu.device, &sizes)?;
        let mut set = Self {
            read: (gpu.rooflines.read(&originals), 0),
            in_place: (gpu.rooflines.in_place(&originals), 0),
            gpu,
            data,
            cached,
            originals,
            arena,
            layouts: Vec::new(),
        };
        for &layout in layouts {
            let mut buffers = set.create_layout(layout, &chunks)?;
            set.restore(&buffers)?;
            buffers.plans = Op::ALL.into_iter().map(|op| set.plan(op, &buffers)).collect::<Result<_>>()?;
            set.layouts.push(buffers);
        }
        set.read.1 = gpu.fastest_steps(cached, &set.read.0)?;
        set.in_place.1 = gpu.fastest_steps(cached, &set.in_place.0)?;
        Ok(set)
    }

    fn create_layout(&self, layout: Layout, chunks: &[Range<usize>]) -> Result<LayoutBuffers> {
        let source = |range: &Range<usize>| {
            let index = chunks.partition_point(|chunk| chunk.end <= range.start);
            (index, (range.start - chunks[index].start) as u64)
        };
        let ranges = &self.data.ranges;
        let mut buffers =
            LayoutBuffers { layout, copies: Vec::new(), tensors: Vec::new(), plans: Vec::new() };
        match layout {
            Layout::Arena => {
                let copy = |(from, to): (&Buffer, &Buffer)| CopyRange {
                    from: (from.clone(), 0),
                    to: (to.clone(), 0),
                    bytes: from.size(),
                };
                buffers.copies = self.originals.iter().zip(&self.arena).map(copy).collect();
                buffers.tensors = ranges
                    .iter()
                    .map(|range| {
                        let (index, offset) = source(range);
                        TensorRange {
                            buffer: self.arena[index].clone(),
                            bytes: offset..offset + range.len() as u64,
                        }
                    })
                    .collect();
            }
            Layout::Separate | Layout::Array => {
                let sizes: Vec<usize> = ranges.iter().map(|range| range.len().next_multiple_of(4)).collect();
                for (range, buffer) in ranges.iter().zip(allocate(&self.gpu.device, &sizes)?) {
                    let (index, offset) = source(range);
                    let bytes = buffer.size();
                    buffers.copies.push(CopyRange {
                        from: (self.originals[index].clone(), offset),
                        to: (buffer.clone(), 0),
                        bytes,
                    });
                    buffers.tensors.push(TensorRange { buffer, bytes: 0..range.len() as u64 });
                }
            }
        }
        Ok(buffers)
    }

    fn plan(&self, op: Op, buffers: &LayoutBuffers) -> Result<OpPlan> {
        let clip = op.clip(self.data.norm);
        let plan = self.prepare(buffers, clip)?;
        let prepare_again = || {
            let start = Instant::now();
            self.prepare(buffers, clip).map(|_| start.elapsed().as_secs_f64())
        };
        let seconds = (0..PREPARATIONS).map(|_| prepare_again()).collect::<Result<Vec<_>, _>>()?;
        Ok(OpPlan { op, plan, prepare: Quartiles::of(seconds).expect("PREPARATIONS is not 0") })
    }

    fn prepare(&self, buffers: &LayoutBuffers, clip: Clip) -> Result<ClipPlan, Error> {
        let dtype = self.data.dtype;
        let tensors = buffers.tensors.iter();
        let gradients: Vec<_> =
            tensors.map(|tensor| Gradient::new(&tensor.buffer, dtype).bytes(tensor.bytes.clone())).collect();
        let with_arrays = self.gpu.with_arrays.as_ref().filter(|_| buffers.layout == Layout::Array);
        with_arrays.unwrap_or(&self.gpu.clipper).prepare(&gradients, clip)
    }

    /// Runs the operation once and checks the result.
    pub fn check(&self, layout: Layout, op: Op) -> Result<()> {
        let (buffers, plan) = (self.find(layout), self.find(layout).find(op));
        let norm = self.data.norm;
        let mut encoder = self.gpu.encoder();
        encode(op, plan, &mut encoder);
        let record = (op != Op::Clamp).then(|| plan.plan.read_back(&mut encoder));
        self.gpu.submit_and_wait([encoder.finish()])?;
        if let Some(record) = record {
            op.check_record(&record.wait()?, norm)?;
        }
        self.check_elements(op, buffers)?;
        if op.changes() {
            self.restore(buffers)?;
        }
        Ok(())
    }

    fn check_elements(&self, op: Op, buffers: &LayoutBuffers) -> Result<()> {
        let SetData { dtype, norm, ranges, .. } = self.data;
        // Chunks of tensors: buffer and offset on the device, and byte range of the original.
        let mut samples = Vec::new();
        for (tensor, range) in buffers.tensors.iter().zip(ranges) {
            for offset in (0..range.len()).step_by(STAGING / 4) {
                let len = (range.len() - offset).min(STAGING / 4);
                let at = range.start + offset;
                samples.push((&tensor.buffer, tensor.bytes.start + offset as u64, at..at + len));
            }
        }
        let total: usize = ranges.iter().map(Range::len).sum();
        let step = total.div_ceil(MAX_CHECKED_BYTES).max(1);
        let mut samples = samples.into_iter().step_by(step).peekable();
        while samples.peek().is_some() {
            let (mut batch, mut end) = (Vec::new(), 0);
            while let Some((buffer, offset, range)) =
                samples.next_if(|(_, _, range)| end + range.len().next_multiple_of(256) <= STAGING)
            {
                let len = range.len();
                batch.push((buffer, offset, range, end));
                end += len.next_multiple_of(256);
            }
            self.gpu.run(|encoder| {
                for (buffer, offset, range, to) in &batch {
                    let len = range.len().next_multiple_of(4) as u64;
                    encoder.copy_buffer_to_buffer(buffer, *offset, &self.gpu.staging, *to as u64, len);
                }
            })?;
            self.gpu.read_mapped(&self.gpu.staging, |bytes| {
                batch.iter().try_for_each(|(_, _, range, at)| {
                    let (before, after) = (&self.data.bytes()[range.clone()], &bytes[*at..][..range.len()]);
                    op.check_elements(*dtype, before, after, *norm)
                })
            })?;
        }
        Ok(())
    }

    /// Times one run of a workload.
    pub fn time(&self, layout: Layout, workload: Workload) -> Result<Sample> {
        let gpu = self.gpu;
        match workload {
            Workload::Roofline(roofline) => {
                gpu.time(self.cached, |encoder| self.encode_roofline(roofline, encoder))
            }
            Workload::Op(op) => {
                let buffers = self.find(layout);
                let plan = buffers.find(op);
                let sample = gpu.time(self.cached, |encoder| encode(op, plan, encoder))?;
                if op.changes() {
                    self.restore(buffers)?;
                }
                Ok(sample)
            }
        }
    }

    fn encode_roofline(&self, roofline: Roofline, encoder: &mut CommandEncoder) {
        let kernel = match roofline {
            Roofline::Read => &self.read,
            Roofline::InPlace => &self.in_place,
            Roofline::Copy => {
                for (from, to) in self.originals.iter().zip(&self.arena) {
                    encoder.copy_buffer_to_buffer(from, 0, to, 0, from.size());
                }
                return;
            }
        };
        self.gpu.rooflines.encode(&kernel.0, kernel.1, encoder);
    }

    fn restore(&self, buffers: &LayoutBuffers) -> Result<()> {
        self.gpu.run(|encoder| {
            for CopyRange { from: (source, start), to: (target, offset), bytes } in &buffers.copies {
                encoder.copy_buffer_to_buffer(source, *start, target, *offset, *bytes);
            }
        })
    }

    /// Returns the dispatches, scratch memory and preparation time of an operation's plan.
    pub fn cost(&self, layout: Layout, op: Op) -> PlanCost {
        let OpPlan { plan, prepare, .. } = self.find(layout).find(op);
        PlanCost { dispatches: plan.dispatches(), scratch_bytes: plan.scratch_bytes(), prepare: *prepare }
    }

    fn find(&self, layout: Layout) -> &LayoutBuffers {
        self.layouts.iter().find(|buffers| buffers.layout == layout).expect("new() was given the layout")
    }
}

impl LayoutBuffers {
    fn find(&self, op: Op) -> &OpPlan {
        self.plans.iter().find(|plan| plan.op == op).expect("every operation has a plan")
    }
}

fn encode(op: Op, OpPlan { plan, .. }: &OpPlan, encoder: &mut CommandEncoder) {
    match op {
        Op::Norm => plan.encode_norm(encoder),
        _ => plan.encode(encoder),
    }
}

/// Splits the arena of a set between tensors into ranges of at most `largest` bytes.
fn chunks(data: &SetData, largest: usize) -> Result<Vec<Range<usize>>> {
    let mut starts = vec![0];
    let ends = data.ranges.iter().skip(1).map(|range| range.start).chain([data.bytes().len()]);
    for (range, end) in data.ranges.iter().zip(ends) {
        let len = end - range.start;
        ensure!(
            len <= largest,
            "a tensor takes {len} bytes, but the device allows at most {largest} bytes per buffer"
        );
        if end - starts.last().copied().unwrap_or_default() > largest {
            starts.push(range.start);
        }
    }
    let ends = starts.iter().skip(1).copied().chain([data.bytes().len()]).collect::<Vec<_>>();
    Ok(starts.into_iter().zip(ends).map(|(start, end)| start..end).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sets::GradientSet;
    use gradclip::DType;

    #[test]
    fn an_arena_is_split_between_tensors_to_fit_the_buffer_limit() {
        let set = GradientSet::new("any", DType::F32, vec![64, 65, 128, 1]);
        let data = SetData::new(&set);
        assert_eq!(data.ranges, [0..256, 256..516, 768..1280, 1280..1284]);
        for (largest, expected) in
            [(4096, &[1536][..]), (1280, &[1280, 1536]), (768, &[768, 1536]), (512, &[256, 768, 1280, 1536])]
        {
            let chunks = chunks(&data, largest).unwrap();
            let ends: Vec<usize> = chunks.iter().map(|chunk| chunk.end).collect();
            let starts: Vec<usize> = chunks.iter().map(|chunk| chunk.start).collect();
            assert_eq!(ends, expected, "{largest}");
            assert_eq!((starts[0], &starts[1..]), (0, &ends[..ends.len() - 1]), "{largest}");
        }
        assert!(chunks(&data, 256).is_err());
    }
}
