//! `DeviceContext`: the device, its limits and the compiled kernels that all plans of a clipper share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::clipper::Clipper;
use super::error_scope::CheckedDevice;
use super::pipeline::Pipeline;
use crate::Error;
use crate::adapters::is_software;
use crate::kernels::Kernel;
use crate::plan::{Device, Limits};

/// A device, its limits, and its compiled kernels.
#[derive(Debug)]
pub(super) struct DeviceContext {
    checked_device: Arc<CheckedDevice>,
    limits: Limits,
    /// Bound to the slots that a dispatch leaves free.
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
        Self::with_limits(device, pipeline_cache, &allowed_by(&device.limits(), &device.adapter_info()))
    }

    /// Creates another context of the same device, whose plans use arrays of buffers.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLimit`] if the device has no such arrays; [`Error::DeviceLost`].
    pub(super) fn with_binding_arrays(&self) -> Result<Self, Error> {
        let device = self.device();
        let mut allowed = allowed_by(&device.limits(), &device.adapter_info());
        if device.features().contains(Clipper::BINDING_ARRAYS) {
            allowed.max_binding_array_elements_per_shader_stage =
                device.limits().max_binding_array_elements_per_shader_stage;
        }
        let context = Self::with_limits(device, self.pipeline_cache.clone(), &allowed)?;
        context.limits.check_arrays()?;
        Ok(context)
    }

    fn with_limits(
        device: &wgpu::Device,
        pipeline_cache: Option<wgpu::PipelineCache>,
        allowed: &Device,
    ) -> Result<Self, Error> {
        let limits = Limits::new(allowed)?;
        let bytes = limits.filler_bytes();
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

    /// Returns the buffer for slots that a dispatch does not use.
    pub(super) fn filler(&self) -> &wgpu::Buffer {
        &self.filler
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

    /// Drops the compiled kernels, because one of them may be invalid.
    #[cfg(target_arch = "wasm32")]
    pub(super) fn forget_pipelines(&self) {
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Returns what a device allows.
fn allowed_by(limits: &wgpu::Limits, adapter: &wgpu::AdapterInfo) -> Device {
    Device {
        min_storage_buffer_offset_alignment: limits.min_storage_buffer_offset_alignment,
        max_compute_workgroup_size_x: limits.max_compute_workgroup_size_x,
        max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
        max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size,
        max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
        max_storage_buffers_per_shader_stage: limits.max_storage_buffers_per_shader_stage,
        max_uniform_buffers_per_shader_stage: limits.max_uniform_buffers_per_shader_stage,
        max_buffers_per_shader_stage: limits.max_buffers_and_acceleration_structures_per_shader_stage,
        max_bindings_per_bind_group: limits.max_bindings_per_bind_group,
        // Arrays are used on request only.
        max_binding_array_elements_per_shader_stage: 0,
        max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
        max_buffer_size: limits.max_buffer_size,
        is_software: is_software(adapter),
        has_full_workgroups: adapter.backend != wgpu::Backend::Metal,
    }
}
