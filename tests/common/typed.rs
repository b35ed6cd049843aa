//! Gradients of every type, and in every role that a clip has for them.

use std::ops::Range;

use gradclip::wgpu;
use gradclip::{Clip, ClipRecord, DType, Error, Gradient, Parameter, cpu};
use half::{bf16, f16};

use super::Gpu;

/// What lies beside the gradients: enormous in each type, so that a norm which takes it in is wrong, and neither a factor
/// nor a bound leaves it as it is.
const GUARD: u16 = 0xfbfe;

/// What a gradient is besides its numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Role {
    pub(crate) dtype: DType,
    pub(crate) group: usize,
    pub(crate) measured: bool,
    pub(crate) scaled: bool,
    pub(crate) rows: usize,
    /// In single precision, whatever the gradient is.
    pub(crate) parameter: Option<&'static [f32]>,
}

impl Role {
    pub(crate) const fn of(dtype: DType) -> Self {
        Self { dtype, group: 0, measured: true, scaled: true, rows: 1, parameter: None }
    }

    pub(crate) const fn group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    pub(crate) const fn unmeasured(self) -> Self {
        Self { measured: false, ..self }
    }

    pub(crate) const fn unscaled(self) -> Self {
        Self { scaled: false, ..self }
    }

    pub(crate) const fn rows(self, rows: usize) -> Self {
        Self { rows, ..self }
    }

    pub(crate) fn parameter(self, parameter: &[f32]) -> Self {
        Self { parameter: Some(parameter.to_vec().leak()), ..self }
    }

    fn on_gpu<'a>(
        self,
        buffer: &'a wgpu::Buffer,
        elements: Range<u64>,
        parameter: Option<&'a wgpu::Buffer>,
    ) -> Gradient<'a> {
        let gradient = Gradient::new(buffer, self.dtype).elements(elements).group(self.group);
        let gradient = gradient.rows(self.rows as u64);
        let gradient = if self.measured { gradient } else { gradient.unmeasured() };
        let gradient = if self.scaled { gradient } else { gradient.unscaled() };
        match (parameter, self.parameter) {
            (Some(buffer), Some(parameter)) => {
                let own = 1..1 + parameter.len() as u64;
                gradient.parameter(Parameter::new(buffer, DType::F32).elements(own))
            }
            _ => gradient,
        }
    }

    /// Its parameter, at an odd offset between guards.
    fn parameter_on_gpu(self, gpu: &Gpu) -> Option<wgpu::Buffer> {
        let guard = [f32::from_bits(u32::from(GUARD) << 16)];
        self.parameter.map(|own| gpu.buffer_of(&[&guard, own, &guard].concat()))
    }

    fn on_cpu(self, gradient: cpu::Gradient<'_>) -> cpu::Gradient<'_> {
        let gradient = gradient.group(self.group).rows(self.rows);
        let gradient = if self.measured { gradient } else { gradient.unmeasured() };
        let gradient = if self.scaled { gradient } else { gradient.unscaled() };
        match self.parameter {
            Some(parameter) => gradient.parameter(cpu::Parameter::f32(parameter)),
            None => gradient,
        }
    }
}

/// The nearest number of a type, ties to even, infinite beyond its range.
pub(crate) fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// As it lies in memory, in units of 2 bytes.
fn halves(dtype: DType, elements: &[f32]) -> Vec<u16> {
    match dtype {
        DType::F16 => elements.iter().map(|&x| f16::from_f32(x).to_bits()).collect(),
        DType::BF16 => elements.iter().map(|&x| bf16::from_f32(x).to_bits()).collect(),
        _ => bytemuck::cast_slice(elements).to_vec(),
    }
}

fn elements(dtype: DType, halves: &[u16]) -> Vec<f32> {
    match dtype {
        DType::F16 => halves.iter().map(|&half| f16::from_bits(half).to_f32()).collect(),
        DType::BF16 => halves.iter().map(|&half| bf16::from_bits(half).to_f32()).collect(),
        _ => bytemuck::pod_collect_to_vec(halves),
    }
}

/// What came of a clip, and of the gradients, whether it succeeded or not.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) records: Result<Vec<ClipRecord>, Error>,
    pub(crate) gradients: Vec<Vec<f32>>,
}

/// Clips gradients, each in its role, with a clip for each group.
pub(crate) fn attempt_on_cpu(gradients: &[Vec<f32>], roles: &[Role], clips: &[Clip]) -> Attempt {
    let mut memory: Vec<_> =
        gradients.iter().zip(roles).map(|(gradient, role)| halves(role.dtype, gradient)).collect();
    // What lies in memory as halves need not be aligned as f32.
    let mut singles = gradients.to_vec();
    let both = memory.iter_mut().zip(&mut singles).zip(roles);
    let mut slices: Vec<_> = both
        .map(|((halves, singles), role)| {
            role.on_cpu(match role.dtype {
                DType::F16 => cpu::Gradient::f16(bytemuck::cast_slice_mut(halves)),
                DType::BF16 => cpu::Gradient::bf16(bytemuck::cast_slice_mut(halves)),
                _ => cpu::Gradient::f32(singles),
            })
        })
        .collect();
    let records = cpu::clip_groups(&mut slices, clips);
    let after =
        memory.into_iter().zip(singles).zip(roles).map(|((halves, singles), role)| match role.dtype {
            DType::F32 => singles,
            dtype => elements(dtype, &halves),
        });
    Attempt { records, gradients: after.collect() }
}

/// Where gradients lie: for each its buffer, and its halves there; and the halves of each buffer.
#[derive(Clone, Debug)]
pub(crate) struct Halves {
    pub(crate) spans: Vec<(usize, Range<usize>)>,
    pub(crate) buffers: Vec<usize>,
}

/// In halves.
pub(crate) fn size(dtype: DType) -> usize {
    if dtype == DType::F32 { 2 } else { 1 }
}

impl Gpu {
    /// Clips gradients that lie like this, each in its role, with a clip for each group. Whatever lies beside them must
    /// stay as it is.
    pub(crate) fn attempt(
        &self,
        layout: &Halves,
        gradients: &[Vec<f32>],
        roles: &[Role],
        clips: &[Clip],
    ) -> Attempt {
        let mut contents: Vec<_> = layout.buffers.iter().map(|&len| vec![GUARD; len]).collect();
        for ((gradient, role), (buffer, span)) in gradients.iter().zip(roles).zip(&layout.spans) {
            contents[*buffer][span.clone()].copy_from_slice(&halves(role.dtype, gradient));
        }
        let buffers: Vec<_> = contents.iter().map(|contents| self.buffer_of(contents)).collect();
        let records = self.attempt_in(&buffers, layout, roles, clips);

        let mut contents: Vec<Vec<u16>> = buffers.iter().map(|buffer| self.read(buffer)).collect();
        let mut take = |((buffer, span), role): (&(usize, Range<usize>), &Role)| {
            let after = elements(role.dtype, &contents[*buffer][span.clone()]);
            contents[*buffer][span.clone()].fill(GUARD);
            after
        };
        let gradients = layout.spans.iter().zip(roles).map(&mut take).collect();
        for (buffer, contents) in contents.iter().enumerate() {
            let disturbed = contents.iter().position(|&half| half != GUARD);
            assert_eq!(disturbed, None, "half of buffer {buffer}, which belongs to no gradient");
        }
        Attempt { records, gradients }
    }

    fn attempt_in(
        &self,
        buffers: &[wgpu::Buffer],
        layout: &Halves,
        roles: &[Role],
        clips: &[Clip],
    ) -> Result<Vec<ClipRecord>, Error> {
        let parameters: Vec<_> = roles.iter().map(|role| role.parameter_on_gpu(self)).collect();
        let mut gradients = Vec::new();
        for (((buffer, span), role), parameter) in layout.spans.iter().zip(roles).zip(&parameters) {
            let size = size(role.dtype);
            let elements = (span.start / size) as u64..(span.end / size) as u64;
            gradients.push(role.on_gpu(&buffers[*buffer], elements, parameter.as_ref()));
        }
        let plan = self.clipper.prepare_groups(&gradients, clips)?;
        let ticket = self.submit(|encoder| {
            plan.encode(encoder);
            plan.record_buffer().map(|_| plan.read_back_all(encoder))
        });
        ticket.map_or(Ok(Vec::new()), gradclip::ReadBack::wait)
    }
}
