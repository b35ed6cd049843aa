//! Compares gradclip's norm with lampshade's sum on one buffer.

use anyhow::{Context as _, Result, ensure};
use gradclip::{ClipPlan, DType, Gradient, wgpu};
use gradclip_measure::data::SetData;
use gradclip_measure::device::{GpuDevice, allocate_one};
use gradclip_measure::ops::Op;
use gradclip_measure::roofline::Roofline;
use gradclip_measure::roofline::gpu::BoundBuffers;
use gradclip_measure::timing::{Sample, Workload};
use lampshade::{Reducer, U32Reduction};
use wgpu::{Buffer, BufferUsages, CommandEncoder};

/// A reduction of the buffer to one number, or the roofline of reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Competitor {
    /// gradclip's norm of the f32 elements.
    Gradclip,
    /// lampshade's wrapping sum of the same bits as u32.
    Lampshade,
    /// The read roofline.
    Read,
}

impl Competitor {
    /// All competitors, in the order of their discriminants.
    pub(crate) const ALL: [Self; 3] = [Self::Gradclip, Self::Lampshade, Self::Read];

    pub(crate) const fn library(self) -> &'static str {
        match self {
            Self::Gradclip | Self::Read => "gradclip",
            Self::Lampshade => "lampshade",
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gradclip | Self::Read => self.workload().name(),
            Self::Lampshade => "sum",
        }
    }

    pub(crate) const fn dtype(self) -> &'static str {
        match self {
            Self::Gradclip | Self::Read => "f32",
            Self::Lampshade => "u32",
        }
    }

    /// Returns the equivalent workload of `gradclip bench`: a sum reads the same bytes as a norm.
    pub(crate) const fn workload(self) -> Workload {
        match self {
            Self::Gradclip | Self::Lampshade => Workload::Op(Op::Norm),
            Self::Read => Workload::Roofline(Roofline::Read),
        }
    }
}

/// A buffer with the prepared state of each competitor.
pub(crate) struct Comparison<'a> {
    gpu: &'a GpuDevice,
    buffer: Buffer,
    elements: u32,
    plan: ClipPlan,
    reducer: Reducer,
    sum: Buffer,
    read: (BoundBuffers, usize),
}

impl<'a> Comparison<'a> {
    /// Uploads the data, prepares all competitors and checks their results.
    pub(crate) fn new(gpu: &'a GpuDevice, data: &SetData) -> Result<Self> {
        let bytes = data.bytes();
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let buffer = allocate_one(&gpu.device, bytes.len(), usage)?;
        gpu.write(&buffer, bytes)?;
        let gradient = Gradient::new(&buffer, DType::F32);
        let read = gpu.rooflines.read(std::slice::from_ref(&buffer));
        let steps = gpu.fastest_steps(false, &read)?;
        let mut comparison = Self {
            plan: gpu.clipper.prepare(&[gradient], Op::Norm.clip(data.norm))?,
            reducer: Reducer::new(&gpu.device, &gpu.queue),
            sum: allocate_one(&gpu.device, size_of::<u32>(), usage)?,
            elements: u32::try_from(bytes.len() / size_of::<u32>())?,
            read: (read, steps),
            buffer,
            gpu,
        };
        comparison.check(data)?;
        Ok(comparison)
    }

    fn check(&mut self, data: &SetData) -> Result<()> {
        let gpu = self.gpu;
        let mut encoder = gpu.encoder();
        self.record(Competitor::Gradclip, &mut encoder)?;
        self.record(Competitor::Lampshade, &mut encoder)?;
        let ticket = self.plan.read_back(&mut encoder);
        encoder.copy_buffer_to_buffer(&self.sum, 0, &gpu.staging, 0, self.sum.size());
        gpu.submit_and_wait([encoder.finish()])?;

        Op::Norm.check_record(&ticket.wait()?, data.norm)?;
        let words: &[u32] = bytemuck::cast_slice(data.bytes());
        let expected = words.iter().fold(0_u32, |sum, &word| sum.wrapping_add(word));
        let found = gpu.read_mapped(&gpu.staging, |bytes| {
            Ok(bytemuck::pod_read_unaligned::<u32>(&bytes[..size_of::<u32>()]))
        })?;
        ensure!(found == expected, "lampshade: the sum is {found}, but it should be {expected}");
        Ok(())
    }

    /// Times one run of a competitor.
    pub(crate) fn time(&mut self, competitor: Competitor) -> Result<Sample> {
        let mut recorded = Ok(());
        let sample = self.gpu.time(false, |encoder| recorded = self.record(competitor, encoder))?;
        recorded.map(|()| sample)
    }

    fn record(&mut self, competitor: Competitor, encoder: &mut CommandEncoder) -> Result<()> {
        match competitor {
            Competitor::Gradclip => self.plan.encode_norm(encoder),
            Competitor::Lampshade => self
                .reducer
                .record_reduce(encoder, &self.buffer, &self.sum, self.elements, U32Reduction::Sum)
                .context("lampshade")?,
            Competitor::Read => self.gpu.rooflines.encode(&self.read.0, self.read.1, encoder),
        }
        Ok(())
    }
}
