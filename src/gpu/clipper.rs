//! `Clipper`: the kernels of one device, and how a plan is made from them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::clip_plan::{ClipPlan, build};
use super::device::is_software;
use super::error_scope::CheckedDevice;
use super::gradient::{Gradient, Set, Span};
use super::kernels::{
    Compiled, Kernel, MOST_BINDINGS_WITHOUT_SLOTS, MOST_STORAGE_WITHOUT_SLOTS, WIDE_WORKGROUP_BYTES,
    WIDE_WORKGROUP_SIZE, WORKGROUP_BYTES, WORKGROUP_SIZE,
};
use super::layout::{LARGEST_TILE, Limits};
use super::slots::FIRST_SLOT;
use crate::{Clip, Error, GradientId};

/// More windows than this are not bound at once, whatever the device allows. On an H100 the norm kernel takes as long with 64
/// slots as with one, within 4 %; with 256 it takes 20 to 50 % longer.
const MOST_SLOTS: u32 = 64;

/// The same on a software adapter, which compiles each case of every `switch` among slots for seconds.
const MOST_SLOTS_IN_SOFTWARE: u32 = 32;

/// More banks of partials than this are not read at once: each makes the kernel that joins them longer.
const MOST_BANKS: u32 = 16;

/// Clips gradients on one [`wgpu::Device`].
///
/// It compiles a kernel when a plan first needs it and keeps it. Clones share everything, and may be used from any
/// thread.
#[derive(Clone)]
pub struct Clipper {
    inner: Arc<Inner>,
}

struct Inner {
    checked_device: Arc<CheckedDevice>,
    limits: Limits,
    /// Fills the slots of a kernel that a batch has no window for: an alignment's worth each, so that none overlap.
    filler: wgpu::Buffer,
    kernels: Mutex<HashMap<Kernel, Compiled>>,
}

impl Clipper {
    /// The limits to ask for when a device is opened: those of `base`, raised as far as this adapter allows to where clips
    /// take the fewest dispatches. Up to 64 buffers are bound at once then, each in as few pieces as possible, and a workgroup may
    /// have 1024 invocations.
    ///
    /// ```no_run
    /// # let adapter = gradclip::adapters().remove(0);
    /// let descriptor = wgpu::DeviceDescriptor {
    ///     required_limits: gradclip::Clipper::recommended_limits(&adapter, &wgpu::Limits::default()),
    ///     ..wgpu::DeviceDescriptor::default()
    /// };
    /// ```
    #[must_use]
    pub fn recommended_limits(adapter: &wgpu::Adapter, base: &wgpu::Limits) -> wgpu::Limits {
        const BINDINGS: u32 = FIRST_SLOT + MOST_SLOTS;
        let most = adapter.limits();
        let raised = |base: u32, most: u32| base.max(BINDINGS.min(most));
        let widened = |base: u32, most: u32| base.max(WIDE_WORKGROUP_SIZE.min(most));
        wgpu::Limits {
            max_storage_buffers_per_shader_stage: raised(
                base.max_storage_buffers_per_shader_stage,
                most.max_storage_buffers_per_shader_stage,
            ),
            max_buffers_and_acceleration_structures_per_shader_stage: raised(
                base.max_buffers_and_acceleration_structures_per_shader_stage,
                most.max_buffers_and_acceleration_structures_per_shader_stage,
            ),
            max_bindings_per_bind_group: raised(
                base.max_bindings_per_bind_group,
                most.max_bindings_per_bind_group,
            ),
            max_compute_workgroup_size_x: widened(
                base.max_compute_workgroup_size_x,
                most.max_compute_workgroup_size_x,
            ),
            max_compute_invocations_per_workgroup: widened(
                base.max_compute_invocations_per_workgroup,
                most.max_compute_invocations_per_workgroup,
            ),
            max_storage_buffer_binding_size: base
                .max_storage_buffer_binding_size
                .max(most.max_storage_buffer_binding_size),
            max_buffer_size: base.max_buffer_size.max(most.max_buffer_size),
            ..base.clone()
        }
    }

    /// Creates a clipper for `device`.
    ///
    /// The default limits of wgpu and of WebGPU are enough, and no optional feature is needed.
    /// [`recommended_limits`](Self::recommended_limits) are faster for many buffers, or large ones.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLimit`] if the device allows less than the smallest kernel needs; [`Error::DeviceLost`] if it is lost.
    pub fn new(device: &wgpu::Device) -> Result<Self, Error> {
        let limits = usable(&device.limits(), &device.adapter_info())?;
        let bytes = limits.alignment * limits.slots as u64;
        let checked_device = Arc::new(CheckedDevice::new(device.clone()));
        let filler = checked_device.in_error_scope("the clipper", bytes, || {
            Ok(device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("gradclip.filler"),
                size: bytes,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            }))
        })?;
        let inner = Inner { checked_device, limits, filler, kernels: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Prepares a plan that clips `gradients` as one group: checks the input, compiles kernels, allocates and binds buffers.
    ///
    /// The plan keeps the buffers alive. It can be encoded any number of times, and stays valid until one of its gradients
    /// moves to another buffer or range. An empty list is allowed; its norm is 0. This call writes to no gradient.
    ///
    /// # Errors
    ///
    /// An [`Error`] with the index and label of the gradient, and the numbers, if a range is invalid or two gradients overlap;
    /// the errors of [`Clip::checked`]; [`Error::DeviceLimit`] or [`Error::OutOfMemory`] if the device allows too little.
    ///
    /// [`Error::BufferMapped`] or [`Error::BufferRejected`] if a buffer is mapped, has been destroyed or belongs to another device. A
    /// buffer of another [`wgpu::Instance`] is not detected: wgpu cannot tell it from one of this device.
    /// [`Error::DeviceLost`] if the device is lost.
    pub fn prepare(&self, gradients: &[Gradient<'_>], clip: Clip) -> Result<ClipPlan, Error> {
        self.prepare_groups(gradients, &[clip])
    }

    /// [`prepare`](Self::prepare) for gradients of several groups, each with its own limit: one plan, one pass, and a record for
    /// each group. [`Gradient::group`] is the index of a gradient's clip in `clips`.
    ///
    /// ```
    /// # let adapter = gradclip::adapters().into_iter().next().expect("an adapter: scripts/test installs a software one");
    /// # let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
    /// # let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    /// # let buffer = |size| {
    /// #     device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    /// # };
    /// # let (body, head, embedding) = (buffer(64), buffer(16), buffer(256));
    /// # queue.write_buffer(&head, 0, bytemuck::cast_slice(&[3.0_f32, 4.0]));
    /// # let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    /// # use gradclip::{Clip, Clipper, DType, Gradient};
    /// let gradients = [
    ///     Gradient::new(&body, DType::F32),
    ///     Gradient::new(&head, DType::F32).group(1),
    ///     Gradient::new(&embedding, DType::BF16).unmeasured(),
    /// ];
    /// let clips = [Clip::by_global_norm(1.0), Clip::by_global_norm(0.1)].map(Clip::tensor_stats);
    /// let plan = Clipper::new(&device)?.prepare_groups(&gradients, &clips)?;
    /// plan.encode(&mut encoder);
    /// let (groups, tensors) = (plan.read_back_all(&mut encoder), plan.read_back_tensor_stats(&mut encoder));
    /// queue.submit([encoder.finish()]);
    /// assert_eq!(groups.wait()?[1].total_norm, 5.0);
    /// assert_eq!(tensors.wait()?.len(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`prepare`](Self::prepare); [`Error::GroupWithoutClip`] if there is no clip for a gradient's group; [`Error::GroupsDiffer`] if the
    /// clips differ in more than their limits; [`Error::NoClip`] if `clips` is empty.
    pub fn prepare_groups(&self, gradients: &[Gradient<'_>], clips: &[Clip]) -> Result<ClipPlan, Error> {
        let operations = Clip::all_checked(clips)?;
        let with_parameters = operations[0].is_relative();
        let set = Set::resolve(gradients, clips.len(), with_parameters)?;
        build(self, &operations, &set).map_err(|error| match error {
            Error::BufferRejected { gradient: None, .. } => self.refused(&set).unwrap_or(error),
            error => error,
        })
    }

    /// The error that names the gradient whose buffer wgpu refuses, or whose parameter's.
    fn refused(&self, set: &Set<'_>) -> Option<Error> {
        let objection = |span: &Span| {
            let buffer = set.buffers[span.buffer];
            let message = self.inner.checked_device.validation_error(|| bind(self.device(), buffer))?;
            let gradient = GradientId::new(span.gradient, set.labels.get(span.gradient));
            Some(Error::BufferRejected { gradient: Some(gradient), message })
        };
        let mut gradients = set.spans.iter().filter(|span| span.len > 0);
        let mut parameters = set.parameters.iter().flatten().filter(|span| span.len > 0);
        gradients.find_map(objection).or_else(|| {
            let error = Box::new(parameters.find_map(objection)?);
            Some(Error::InParameter { error })
        })
    }

    /// The device it clips on.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        self.inner.checked_device.device()
    }

    pub(crate) fn checked_device(&self) -> &Arc<CheckedDevice> {
        &self.inner.checked_device
    }

    pub(super) fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// Makes a plan whose tables and partials take so many bytes, and whose largest dispatch so many workgroups.
    pub(super) fn guarded(
        &self,
        scratch: u64,
        workgroups: usize,
        make: impl FnOnce() -> Result<ClipPlan, Error>,
    ) -> Result<ClipPlan, Error> {
        self.check_scratch(scratch)?;
        let (allowed, workgroups) = (u64::from(self.inner.limits.grid), workgroups as u64);
        if workgroups > allowed * allowed {
            let name = "max_compute_workgroups_per_dimension";
            return Err(Error::DeviceLimit { what: PLAN, name, needed: workgroups.isqrt() + 1, allowed });
        }
        self.inner.checked_device.in_error_scope("a clip plan", scratch, make)
    }

    /// Checks that a plan may have tables and partials of so many bytes.
    pub(super) fn check_scratch(&self, needed: u64) -> Result<(), Error> {
        let allowed = self.inner.limits.binding_bytes.min(self.device().limits().max_buffer_size);
        let name = "max_storage_buffer_binding_size and max_buffer_size";
        if needed > allowed { Err(Error::DeviceLimit { what: PLAN, name, needed, allowed }) } else { Ok(()) }
    }

    /// The binding that fills slot number `slot`.
    pub(super) fn filler(&self, slot: usize) -> wgpu::BufferBinding<'_> {
        let size = self.inner.limits.alignment;
        wgpu::BufferBinding {
            buffer: &self.inner.filler,
            offset: slot as u64 * size,
            size: wgpu::BufferSize::new(size),
        }
    }

    /// The kernel, compiled if no plan has needed it before.
    pub(super) fn kernel(&self, kernel: Kernel) -> Result<Compiled, Error> {
        // A map of finished kernels is whole even if a thread panicked while it held the lock.
        let mut kernels = self.inner.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = kernels.get(&kernel) {
            return Ok(compiled.clone());
        }
        let compiled =
            self.inner.checked_device.in_error_scope("a kernel", 0, || Ok(kernel.compile(self.device())))?;
        kernels.insert(kernel, compiled.clone());
        Ok(compiled)
    }
}

/// What needs more than a device allows.
const PLAN: &str = "a plan for the elements and rows of these gradients";

impl fmt::Debug for Clipper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clipper").field("device", self.device()).finish_non_exhaustive()
    }
}

/// Binds the first word of a buffer, to see whether wgpu will.
fn bind(device: &wgpu::Device, buffer: &wgpu::Buffer) -> wgpu::BindGroup {
    let label = Some("gradclip.check");
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label,
        entries: &[wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: true },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        }],
    });
    let word = wgpu::BufferBinding { buffer, offset: 0, size: wgpu::BufferSize::new(4) };
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label,
        layout: &layout,
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(word) }],
    })
}

/// What a plan may use of a device, if that is enough.
fn usable(device: &wgpu::Limits, adapter: &wgpu::AdapterInfo) -> Result<Limits, Error> {
    let alignment = u64::from(device.min_storage_buffer_offset_alignment.max(16));
    let needed: [(&'static str, u64, u64); 10] = [
        ("max_compute_workgroup_size_x", WORKGROUP_SIZE.into(), device.max_compute_workgroup_size_x.into()),
        (
            "max_compute_invocations_per_workgroup",
            WORKGROUP_SIZE.into(),
            device.max_compute_invocations_per_workgroup.into(),
        ),
        (
            "max_compute_workgroup_storage_size",
            WORKGROUP_BYTES.into(),
            device.max_compute_workgroup_storage_size.into(),
        ),
        ("max_compute_workgroups_per_dimension", 1 << 8, device.max_compute_workgroups_per_dimension.into()),
        (
            "max_storage_buffers_per_shader_stage",
            MOST_STORAGE_WITHOUT_SLOTS.into(),
            device.max_storage_buffers_per_shader_stage.into(),
        ),
        ("max_uniform_buffers_per_shader_stage", 1, device.max_uniform_buffers_per_shader_stage.into()),
        (
            "max_buffers_and_acceleration_structures_per_shader_stage",
            MOST_BINDINGS_WITHOUT_SLOTS.into(),
            device.max_buffers_and_acceleration_structures_per_shader_stage.into(),
        ),
        (
            "max_bindings_per_bind_group",
            MOST_BINDINGS_WITHOUT_SLOTS.into(),
            device.max_bindings_per_bind_group.into(),
        ),
        (
            "max_storage_buffer_binding_size",
            4 * LARGEST_TILE + alignment,
            device.max_storage_buffer_binding_size,
        ),
        ("max_buffer_size", 4 * LARGEST_TILE + alignment, device.max_buffer_size),
    ];
    for (name, needed, allowed) in needed {
        if allowed < needed {
            return Err(Error::DeviceLimit { what: "clipping", name, needed, allowed });
        }
    }
    let slots = device
        .max_storage_buffers_per_shader_stage
        .min(device.max_buffers_and_acceleration_structures_per_shader_stage)
        .min(device.max_bindings_per_bind_group)
        - FIRST_SLOT;
    // Besides the first bank, the kernel that joins partials binds the places of partials and the other banks.
    let more = device.max_storage_buffers_per_shader_stage.saturating_sub(MOST_STORAGE_WITHOUT_SLOTS).min(
        device
            .max_buffers_and_acceleration_structures_per_shader_stage
            .min(device.max_bindings_per_bind_group)
            .saturating_sub(MOST_BINDINGS_WITHOUT_SLOTS),
    );
    Ok(Limits {
        // Windows are addressed in 32 bits, whatever a device allows.
        binding_bytes: device.max_storage_buffer_binding_size.min(1 << 31) / 16 * 16,
        alignment,
        slots: slots.min(if is_software(adapter) { MOST_SLOTS_IN_SOFTWARE } else { MOST_SLOTS }) as usize,
        // On Metal a pipeline that takes many registers may allow fewer invocations than its device.
        wide: adapter.backend != wgpu::Backend::Metal
            && WIDE_WORKGROUP_SIZE
                <= device.max_compute_workgroup_size_x.min(device.max_compute_invocations_per_workgroup)
            && WIDE_WORKGROUP_BYTES <= device.max_compute_workgroup_storage_size,
        banks: 1 << more.clamp(1, MOST_BANKS).ilog2(),
        grid: device.max_compute_workgroups_per_dimension,
    })
}
