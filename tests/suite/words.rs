//! Gradients of f32 in buffers, by words, and one plain clip of them.

use std::ops::Range;

use gradclip::wgpu;
use gradclip::{Clip, ClipRecord, DType, Error, Gradient, cpu};

use crate::common::Gpu;

/// What lies beside the gradients: so large that a norm which takes it in is wrong, and neither a factor nor a bound
/// leaves it as it is.
pub(crate) const GUARD: f32 = -7.7e25;

pub(crate) fn slices(gradients: &[Vec<f32>]) -> Vec<&[f32]> {
    gradients.iter().map(Vec::as_slice).collect()
}

/// What a clip left behind.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) record: Option<ClipRecord>,
    pub(crate) gradients: Vec<Vec<f32>>,
}

pub(crate) fn clip_on_cpu(gradients: &[Vec<f32>], clip: Clip) -> Result<Outcome, Error> {
    let mut gradients = gradients.to_vec();
    let mut list: Vec<_> = gradients.iter_mut().map(|gradient| cpu::Gradient::f32(gradient)).collect();
    let record = cpu::clip(&mut list, clip)?.first().copied();
    Ok(Outcome { record, gradients })
}

/// Where gradients lie.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    /// For each gradient its buffer, and its words there.
    pub(crate) spans: Vec<(usize, Range<usize>)>,
    /// The words of each buffer.
    pub(crate) buffers: Vec<usize>,
}

impl Placement {
    /// Every gradient in a buffer of its own.
    pub(crate) fn separate(lens: &[usize]) -> Self {
        Self { spans: lens.iter().map(|&len| 0..len).enumerate().collect(), buffers: lens.to_vec() }
    }

    /// All in one buffer, each at a multiple of 16 bytes.
    pub(crate) fn arena(lens: &[usize]) -> Self {
        let mut end = 0_usize;
        let mut place = |&len: &usize| {
            let start = end.next_multiple_of(4);
            end = start + len;
            (0, start..end)
        };
        let spans = lens.iter().map(&mut place).collect();
        Self { spans, buffers: vec![end] }
    }

    /// All in one buffer, the last one first, each at an odd word with guard words around it.
    pub(crate) fn packed(lens: &[usize]) -> Self {
        let mut end = 0;
        let mut place = |&len: &usize| {
            let start = (end + 1) | 1;
            end = start + len;
            (0, start..end)
        };
        let mut spans: Vec<_> = lens.iter().rev().map(&mut place).collect();
        spans.reverse();
        Self { spans, buffers: vec![end + 3] }
    }

    fn is_alone(&self, (buffer, words): &(usize, Range<usize>)) -> bool {
        *words == (0..self.buffers[*buffer])
    }
}

impl Gpu {
    /// A buffer with these numbers in it.
    pub(crate) fn buffer(&self, contents: &[f32]) -> wgpu::Buffer {
        self.buffer_of(contents)
    }

    /// A buffer of so many bytes that the host writes.
    pub(crate) fn writable(&self, size: u64) -> wgpu::Buffer {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    /// Uploads gradients to where they are to lie, with guards in every other word.
    pub(crate) fn place(&self, placement: &Placement, gradients: &[Vec<f32>]) -> Placed {
        let mut contents: Vec<_> = placement.buffers.iter().map(|&words| vec![GUARD; words]).collect();
        for ((buffer, words), gradient) in placement.spans.iter().zip(gradients) {
            contents[*buffer][words.clone()].copy_from_slice(gradient);
        }
        let buffers = contents.iter().map(|contents| self.buffer(contents)).collect();
        Placed { placement: placement.clone(), buffers }
    }

    /// Clips gradients that lie like this.
    pub(crate) fn clip(
        &self,
        placement: &Placement,
        gradients: &[Vec<f32>],
        clip: Clip,
    ) -> Result<Outcome, Error> {
        let placed = self.place(placement, gradients);
        let plan = self.clipper.prepare(&placed.gradients(), clip)?;
        let ticket = self.submit(|encoder| {
            plan.encode(encoder);
            plan.record_buffer().map(|_| plan.read_back(encoder))
        });
        let record = ticket.map(gradclip::ReadBack::wait).transpose()?;
        Ok(Outcome { record, gradients: placed.read(self) })
    }
}

/// Gradients in their buffers.
#[derive(Debug)]
pub(crate) struct Placed {
    placement: Placement,
    pub(crate) buffers: Vec<wgpu::Buffer>,
}

impl Placed {
    pub(crate) fn gradients(&self) -> Vec<Gradient<'_>> {
        let gradient = |span: &(usize, Range<usize>)| {
            let whole = Gradient::new(&self.buffers[span.0], DType::F32);
            if self.placement.is_alone(span) {
                return whole;
            }
            whole.elements(span.1.start as u64..span.1.end as u64)
        };
        self.placement.spans.iter().map(gradient).collect()
    }

    /// The gradients as they are now, after a check that every guard is as it was.
    pub(crate) fn read(&self, gpu: &Gpu) -> Vec<Vec<f32>> {
        let mut contents: Vec<_> = self.buffers.iter().map(|buffer| gpu.read(buffer)).collect();
        let take = |(buffer, words): &(usize, Range<usize>)| {
            let gradient = contents[*buffer][words.clone()].to_vec();
            contents[*buffer][words.clone()].fill(GUARD);
            gradient
        };
        let gradients = self.placement.spans.iter().map(take).collect();
        for (buffer, contents) in contents.iter().enumerate() {
            if let Some(word) = contents.iter().position(|guard| guard.to_bits() != GUARD.to_bits()) {
                panic!("word {word} of buffer {buffer} is no gradient, but became {}", contents[word]);
            }
        }
        gradients
    }
}
