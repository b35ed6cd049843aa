//! Clips of host elements on each path.

use gradclip::{Clip, ClipRecord, DType, Error, ReadBack, cpu};

use super::gpu::Gpu;
use super::placement::{Placement, load, size, store};
use super::role::Role;

/// The records or the error of a clip, and the gradients after it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) records: Result<Vec<ClipRecord>, Error>,
    pub(crate) gradients: Vec<Vec<f32>>,
}

impl Outcome {
    /// Returns the first record.
    #[track_caller]
    pub(crate) fn record(&self) -> ClipRecord {
        self.records.as_ref().expect("a successful clip")[0]
    }

    #[track_caller]
    fn successful(self) -> Self {
        assert!(self.records.is_ok(), "{:?}", self.records);
        self
    }
}

/// Clips gradients on the CPU, with a clip for each group.
pub(crate) fn clip_groups_on_cpu(gradients: &[Vec<f32>], roles: &[Role], clips: &[Clip]) -> Outcome {
    // Stored as words, which have the alignment of f32.
    let words = |(gradient, role): (&Vec<f32>, &Role)| {
        let units = gradient.len() * size(role.dtype);
        let mut words = vec![0_u32; units.div_ceil(2)];
        store(role.dtype, gradient, &mut bytemuck::cast_slice_mut(&mut words)[..units]);
        words
    };
    let mut memory: Vec<_> = gradients.iter().zip(roles).map(words).collect();
    let slices = memory.iter_mut().zip(gradients).zip(roles).map(|((words, gradient), role)| {
        let len = gradient.len();
        role.on_cpu(match role.dtype {
            DType::F16 => cpu::Gradient::f16(&mut bytemuck::cast_slice_mut(words)[..len]),
            DType::BF16 => cpu::Gradient::bf16(&mut bytemuck::cast_slice_mut(words)[..len]),
            _ => cpu::Gradient::f32(bytemuck::cast_slice_mut(words)),
        })
    });
    let records = cpu::clip_groups(&mut slices.collect::<Vec<_>>(), clips);
    let after = memory.iter().zip(gradients).zip(roles).map(|((words, gradient), role)| {
        load(role.dtype, &bytemuck::cast_slice(words)[..gradient.len() * size(role.dtype)])
    });
    Outcome { records, gradients: after.collect() }
}

/// Clips gradients of f32 on the CPU.
///
/// # Panics
///
/// If the clip fails.
#[track_caller]
pub(crate) fn clip_on_cpu(gradients: &[Vec<f32>], clip: Clip) -> Outcome {
    clip_groups_on_cpu(gradients, &vec![Role::of(DType::F32); gradients.len()], &[clip]).successful()
}

impl Gpu {
    /// Clips gradients in guarded buffers, with a clip for each group.
    pub(crate) fn clip_groups(
        &self,
        placement: &Placement,
        gradients: &[Vec<f32>],
        roles: &[Role],
        clips: &[Clip],
    ) -> Outcome {
        let dtypes: Vec<_> = roles.iter().map(|role| role.dtype).collect();
        let placed = self.place_typed(placement, &dtypes, gradients);
        let parameters: Vec<_> = roles.iter().map(|role| role.place_parameter(self)).collect();
        let plain = placed.gradients().into_iter().zip(roles).zip(&parameters);
        let list: Vec<_> =
            plain.map(|((gradient, role), parameter)| role.on_gpu(gradient, parameter.as_ref())).collect();
        let records = self.clipper.prepare_groups(&list, clips).and_then(|plan| {
            let ticket = self.submit(|encoder| {
                plan.encode(encoder);
                plan.record_buffer().map(|_| plan.read_back_all(encoder))
            });
            ticket.map_or(Ok(Vec::new()), ReadBack::wait)
        });
        Outcome { records, gradients: placed.read(self) }
    }

    /// Clips gradients of f32 in guarded buffers.
    ///
    /// # Panics
    ///
    /// If the clip fails.
    #[track_caller]
    pub(crate) fn clip(&self, placement: &Placement, gradients: &[Vec<f32>], clip: Clip) -> Outcome {
        self.clip_groups(placement, gradients, &vec![Role::of(DType::F32); gradients.len()], &[clip])
            .successful()
    }
}
