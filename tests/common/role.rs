//! The attributes of a gradient, for both paths.

use gradclip::wgpu;
use gradclip::{DType, Gradient, Parameter, cpu};

use super::gpu::Gpu;
use super::placement::{Placed, Placement};

/// The attributes of a gradient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Role {
    pub(crate) dtype: DType,
    pub(crate) group: usize,
    pub(crate) measured: bool,
    pub(crate) scaled: bool,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// The elements of the parameter, in f32 for gradients of every type.
    pub(crate) parameter: Option<&'static [f32]>,
}

impl Role {
    pub(crate) const fn of(dtype: DType) -> Self {
        Self { dtype, group: 0, measured: true, scaled: true, rows: 1, columns: 1, parameter: None }
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

    pub(crate) const fn columns(self, columns: usize) -> Self {
        Self { columns, ..self }
    }

    /// Returns the number of rows or columns, each a unit with its own norm. One of the two is 1.
    pub(crate) const fn units(&self) -> usize {
        if self.columns == 1 { self.rows } else { self.columns }
    }

    pub(crate) fn parameter(self, parameter: &[f32]) -> Self {
        Self { parameter: Some(parameter.to_vec().leak()), ..self }
    }

    /// Uploads the parameter, at an odd element between guards.
    pub(crate) fn place_parameter(self, gpu: &Gpu) -> Option<Placed> {
        let parameter = self.parameter?;
        let placement = Placement::packed(&[(DType::F32, parameter.len())]);
        Some(gpu.place(&placement, &[parameter.to_vec()]))
    }

    /// Adds the attributes to a gradient on the GPU.
    pub(crate) fn on_gpu<'a>(self, gradient: Gradient<'a>, parameter: Option<&'a Placed>) -> Gradient<'a> {
        let gradient = gradient.group(self.group).rows(self.rows as u64).columns(self.columns as u64);
        let gradient = if self.measured { gradient } else { gradient.unmeasured() };
        let gradient = if self.scaled { gradient } else { gradient.unscaled() };
        let Some(parameter) = parameter else { return gradient };
        let (buffer, elements): (&wgpu::Buffer, _) = parameter.elements_of(0);
        gradient.parameter(Parameter::new(buffer, DType::F32).elements(elements))
    }

    /// Adds the attributes to a gradient on the CPU.
    pub(crate) fn on_cpu(self, gradient: cpu::Gradient<'_>) -> cpu::Gradient<'_> {
        let gradient = gradient.group(self.group).rows(self.rows).columns(self.columns);
        let gradient = if self.measured { gradient } else { gradient.unmeasured() };
        let gradient = if self.scaled { gradient } else { gradient.unscaled() };
        match self.parameter {
            Some(parameter) => gradient.parameter(cpu::Parameter::f32(parameter)),
            None => gradient,
        }
    }
}
