//! `DeviceContext`: the device, its limits and the compiled kernels that all plans of a clipper share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::error_scope::CheckedDevice;
use super::layout::Limits;
use super::pipeline::Pipeline;
use crate::Error;
use crate::adapters::is_software;
use crate::kernels::FIRST_SLOT;
use crate::kernels::tables::LARGEST_TILE;
use crate::kernels::{
    Kernel, MAX_BINDINGS_WITHOUT_SLOTS, MAX_STORAGE_WITHOUT_SLOTS, WIDE_WORKGROUP_BYTES, WIDE_WORKGROUP_SIZE,
    WORKGROUP_BYTES, WORKGROUP_SIZE,
};

/// The most windows that one dispatch binds, whatever the device allows. On an H100 the norm kernel takes as long with 64 slots as
/// with one, within 4 %; with 256 it takes 20 to 50 % longer.
pub(super) const MAX_SLOTS: u32 = 64;

/// [`MAX_SLOTS`] of a software adapter, which takes seconds to compile each case of a `switch` over slots.
const MAX_SLOTS_IN_SOFTWARE: u32 = 32;

/// The most banks of partials that one dispatch reads. Each bank makes the kernel that reduces them longer.
const MAX_BANKS: u32 = 16;

/// The resource of the device that an [`Error::DeviceLimit`] names.
const PLAN: &str = "a plan for the elements and rows of these gradients";

/// A device, its limits, and its compiled kernels.
#[derive(Debug)]
pub(super) struct DeviceContext {
    checked_device: Arc<CheckedDevice>,
    limits: Limits,
    /// Bound to the slots that a batch leaves free. Each slot gets its own aligned range, so that none overlap.
    filler: wgpu::Buffer,
    pipelines: Mutex<HashMap<Kernel, Pipeline>>,
    pipeline_cache: Option<wgpu::PipelineCache>,
}

impl DeviceContext {
    /// Creates the context of `device`.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLimit`] if the device allows less than the smallest kernel needs; [`Error::DeviceLost`];
    /// [`Error::BufferRejected`] if the cache belongs to another device.
    pub(super) fn new(
        device: &wgpu::Device,
        pipeline_cache: Option<wgpu::PipelineCache>,
    ) -> Result<Self, Error> {
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
        Ok(Self { checked_device, limits, filler, pipelines: Mutex::default(), pipeline_cache })
    }

    pub(super) fn device(&self) -> &wgpu::Device {
        self.checked_device.device()
    }

    pub(super) fn checked_device(&self) -> &Arc<CheckedDevice> {
        &self.checked_device
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Makes a plan in an error scope. `scratch` is the size of its tables and partials in bytes, `workgroups` the number of
    /// workgroups of its largest dispatch.
    pub(super) fn guarded<T>(
        &self,
        scratch: u64,
        workgroups: usize,
        make: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.check_scratch(scratch)?;
        let (allowed, workgroups) = (u64::from(self.limits.workgroups_per_dimension), workgroups as u64);
        if workgroups > allowed * allowed {
            let name = "max_compute_workgroups_per_dimension";
            return Err(Error::DeviceLimit { what: PLAN, name, needed: workgroups.isqrt() + 1, allowed });
        }
        self.checked_device.in_error_scope("a clip plan", scratch, make)
    }

    /// Checks that a plan may have `needed` bytes of tables and partials.
    pub(super) fn check_scratch(&self, needed: u64) -> Result<(), Error> {
        let allowed = self.limits.binding_bytes.min(self.device().limits().max_buffer_size);
        let name = "max_storage_buffer_binding_size and max_buffer_size";
        if needed > allowed { Err(Error::DeviceLimit { what: PLAN, name, needed, allowed }) } else { Ok(()) }
    }

    /// Returns the binding for the unused slot `slot`.
    pub(super) fn filler(&self, slot: usize) -> wgpu::BufferBinding<'_> {
        let size = self.limits.alignment;
        wgpu::BufferBinding {
            buffer: &self.filler,
            offset: slot as u64 * size,
            size: wgpu::BufferSize::new(size),
        }
    }

    /// Returns the pipeline of a kernel, compiled at its first use.
    pub(super) fn pipeline(&self, kernel: Kernel) -> Result<Pipeline, Error> {
        // A panic while the lock is held leaves the map intact: only finished pipelines are inserted.
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = pipelines.get(&kernel) {
            return Ok(pipeline.clone());
        }
        let pipeline = self.checked_device.in_error_scope("a kernel", 0, || {
            Ok(Pipeline::compile(self.device(), kernel, self.pipeline_cache.as_ref()))
        })?;
        pipelines.insert(kernel, pipeline.clone());
        Ok(pipeline)
    }
}

/// Returns the limits that plans use.
///
/// # Errors
///
/// [`Error::DeviceLimit`] if the device allows less than the smallest kernel needs.
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
            MAX_STORAGE_WITHOUT_SLOTS.into(),
            device.max_storage_buffers_per_shader_stage.into(),
        ),
        ("max_uniform_buffers_per_shader_stage", 1, device.max_uniform_buffers_per_shader_stage.into()),
        (
            "max_buffers_and_acceleration_structures_per_shader_stage",
            MAX_BINDINGS_WITHOUT_SLOTS.into(),
            device.max_buffers_and_acceleration_structures_per_shader_stage.into(),
        ),
        (
            "max_bindings_per_bind_group",
            MAX_BINDINGS_WITHOUT_SLOTS.into(),
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
    // With several banks, the kernel that reduces partials also binds their locations and the other banks.
    let more = device.max_storage_buffers_per_shader_stage.saturating_sub(MAX_STORAGE_WITHOUT_SLOTS).min(
        device
            .max_buffers_and_acceleration_structures_per_shader_stage
            .min(device.max_bindings_per_bind_group)
            .saturating_sub(MAX_BINDINGS_WITHOUT_SLOTS),
    );
    Ok(Limits {
        // Shaders address windows in 32 bits.
        binding_bytes: device.max_storage_buffer_binding_size.min(1 << 31) / 16 * 16,
        alignment,
        slots: slots.min(if is_software(adapter) { MAX_SLOTS_IN_SOFTWARE } else { MAX_SLOTS }) as usize,
        // On Metal a pipeline that uses many registers may allow fewer invocations than the device.
        wide: adapter.backend != wgpu::Backend::Metal
            && WIDE_WORKGROUP_SIZE
                <= device.max_compute_workgroup_size_x.min(device.max_compute_invocations_per_workgroup)
            && WIDE_WORKGROUP_BYTES <= device.max_compute_workgroup_storage_size,
        banks: 1 << more.clamp(1, MAX_BANKS).ilog2(),
        workgroups_per_dimension: device.max_compute_workgroups_per_dimension,
    })
}
