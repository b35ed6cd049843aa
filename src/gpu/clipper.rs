//! `Clipper`: prepares plans for one device.

use std::fmt;
use std::sync::Arc;

use super::clip_plan::{ClipPlan, prepare};
use super::device_context::DeviceContext;
use super::error_scope::CheckedDevice;
#[cfg(not(target_arch = "wasm32"))]
use super::error_scope::at_once;
use super::gradient::Gradient;
use crate::kernels::FIRST_SLOT;
use crate::kernels::WIDE_WORKGROUP_SIZE;
use crate::operation::Operation;
use crate::plan::{MAX_ARRAY_SLOTS, MAX_SLOTS};
use crate::{Clip, Error};

/// Prepares [`ClipPlan`]s for one [`wgpu::Device`].
///
/// It compiles a kernel when a plan first needs it, and keeps it. Clones share the kernels, and may be used from any thread.
#[derive(Clone)]
pub struct Clipper {
    context: Arc<DeviceContext>,
}

impl Clipper {
    /// The optional features that let one dispatch bind up to 1024 separate buffers, instead of 64: arrays of storage buffers, which
    /// wgpu has on Vulkan.
    ///
    /// See [`with_binding_arrays`](Self::with_binding_arrays).
    pub const BINDING_ARRAYS: wgpu::Features = wgpu::Features::BUFFER_BINDING_ARRAY
        .union(wgpu::Features::STORAGE_RESOURCE_BINDING_ARRAY)
        // A tile names its buffer, so that the index is read from memory.
        .union(wgpu::Features::SAMPLED_TEXTURE_AND_STORAGE_BUFFER_ARRAY_NON_UNIFORM_INDEXING);

    /// Returns the limits to request when a device is opened: those of `base`, raised as far as the adapter allows, so that clips
    /// need the fewest dispatches. They allow up to 64 bound buffers, arrays of 1024 buffers, the largest bindings, and workgroups of
    /// 1024 invocations.
    ///
    /// ```no_run
    /// # let adapter = gradclip::adapters::enumerate().remove(0);
    /// let descriptor = wgpu::DeviceDescriptor {
    ///     required_limits: gradclip::Clipper::recommended_limits(&adapter, &wgpu::Limits::default()),
    ///     ..wgpu::DeviceDescriptor::default()
    /// };
    /// ```
    #[must_use]
    pub fn recommended_limits(adapter: &wgpu::Adapter, base: &wgpu::Limits) -> wgpu::Limits {
        const BINDINGS: u32 = FIRST_SLOT + MAX_SLOTS;
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
            max_binding_array_elements_per_shader_stage: base
                .max_binding_array_elements_per_shader_stage
                .max(MAX_ARRAY_SLOTS.min(most.max_binding_array_elements_per_shader_stage)),
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
    /// [`recommended_limits`](Self::recommended_limits) are faster for many buffers, or large ones; see also
    /// [`with_binding_arrays`](Self::with_binding_arrays).
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLimit`] if the device allows less than the smallest kernel needs; [`Error::DeviceLost`] if it is lost.
    pub fn new(device: &wgpu::Device) -> Result<Self, Error> {
        Self::with_cache(device, None)
    }

    /// [`new`](Self::new) with a pipeline cache of `device`, from which kernels are loaded and to which they are added. It saves
    /// compilation at later starts of the program. wgpu has such caches on Vulkan, with the feature
    /// [`PIPELINE_CACHE`](wgpu::Features::PIPELINE_CACHE). Save [`PipelineCache::get_data`](wgpu::PipelineCache::get_data) after
    /// the plans have been prepared.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new). A cache of another device is an [`Error::BufferRejected`] of
    /// [`prepare`](Self::prepare).
    pub fn with_pipeline_cache(device: &wgpu::Device, cache: &wgpu::PipelineCache) -> Result<Self, Error> {
        Self::with_cache(device, Some(cache.clone()))
    }

    /// Returns a clipper of the same device that binds many buffers as an array. It saves dispatches: 1000 buffers take as many as
    /// one. Whether it saves time has not been measured on a GPU.
    ///
    /// Plans use an array if they have more buffers than a dispatch binds separately. No bits change.
    ///
    /// ```no_run
    /// use gradclip::{Clipper, wgpu};
    /// # let adapter = gradclip::adapters::enumerate().remove(0);
    /// let descriptor = wgpu::DeviceDescriptor {
    ///     required_features: Clipper::BINDING_ARRAYS,
    ///     required_limits: Clipper::recommended_limits(&adapter, &wgpu::Limits::default()),
    ///     ..wgpu::DeviceDescriptor::default()
    /// };
    /// let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    /// let clipper = Clipper::new(&device)?.with_binding_arrays()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::DeviceLimit`] if the device was opened without one of the [`BINDING_ARRAYS`](Self::BINDING_ARRAYS), or with too low a
    /// `max_binding_array_elements_per_shader_stage`; [`Error::DeviceLost`] if it is lost.
    pub fn with_binding_arrays(&self) -> Result<Self, Error> {
        Ok(Self { context: Arc::new(self.context.with_binding_arrays()?) })
    }

    fn with_cache(device: &wgpu::Device, cache: Option<wgpu::PipelineCache>) -> Result<Self, Error> {
        Ok(Self { context: Arc::new(DeviceContext::new(device, cache)?) })
    }

    /// Prepares a plan that clips `gradients` as one group: checks the input, compiles kernels, allocates and binds buffers.
    ///
    /// The plan keeps the buffers alive. It can be encoded any number of times, and stays valid until one of its gradients
    /// moves to another buffer or range. An empty list is allowed; its norm is 0. This call writes to no gradient.
    ///
    /// Not on wasm32, where the errors of the browser arrive later: see [`prepare_async`](Self::prepare_async).
    ///
    /// # Errors
    ///
    /// An [`Error`] with the index and label of the gradient, and the numbers, if a range is invalid or two gradients overlap;
    /// the errors of [`Clip::checked`]; [`Error::DeviceLimit`] or [`Error::OutOfMemory`] if the device allows too little.
    ///
    /// [`Error::BufferMapped`] or [`Error::BufferRejected`] if a buffer is mapped, has been destroyed or belongs to another
    /// device. A buffer of another [`wgpu::Instance`] is not detected: wgpu cannot tell it from one of this device.
    /// [`Error::DeviceLost`] if the device is lost.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn prepare(&self, gradients: &[Gradient<'_>], clip: Clip) -> Result<ClipPlan, Error> {
        self.prepare_groups(gradients, &[clip])
    }

    /// `prepare` for a browser, where errors of the device arrive later. The future awaits them, so a plan that the browser rejects
    /// is an error, as on other targets. On native targets the future is ready at once.
    ///
    /// # Errors
    ///
    /// Those of `prepare`: an error about the gradients, the options or the limits of the device; [`Error::BufferRejected`] with the
    /// gradient if the buffer belongs to another device, or cannot be bound; [`Error::DeviceLost`].
    ///
    /// A browser accepts a destroyed buffer here, and rejects the submission: tickets return [`Error::SubmissionRejected`].
    pub async fn prepare_async(&self, gradients: &[Gradient<'_>], clip: Clip) -> Result<ClipPlan, Error> {
        self.prepare_groups_async(gradients, &[clip]).await
    }

    /// [`prepare`](Self::prepare) for gradients of several groups, each with its own limit: one plan, one pass, and a record for
    /// each group. [`Gradient::group`] is the index of a gradient's clip in `clips`.
    ///
    /// ```
    /// # let adapter = gradclip::adapters::enumerate().into_iter().next().expect("an adapter: scripts/test installs a software one");
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
    /// Those of [`prepare`](Self::prepare); [`Error::GroupWithoutClip`] if there is no clip for a gradient's group;
    /// [`Error::GroupsDiffer`] if the clips differ in more than their limits; [`Error::NoClip`] if `clips` is empty.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn prepare_groups(&self, gradients: &[Gradient<'_>], clips: &[Clip]) -> Result<ClipPlan, Error> {
        at_once(self.prepare_groups_async(gradients, clips))
    }

    /// `prepare_groups` for a browser; see [`prepare_async`](Self::prepare_async).
    ///
    /// # Errors
    ///
    /// Those of [`prepare_async`](Self::prepare_async); [`Error::GroupWithoutClip`], [`Error::GroupsDiffer`] and [`Error::NoClip`], as
    /// for `prepare_groups`.
    pub async fn prepare_groups_async(
        &self,
        gradients: &[Gradient<'_>],
        clips: &[Clip],
    ) -> Result<ClipPlan, Error> {
        self.prepare_operations(gradients, &Clip::checked_groups(clips)?).await
    }

    /// Prepares a plan from the checked clip of each group. On native targets the future is ready at once.
    pub(crate) async fn prepare_operations(
        &self,
        gradients: &[Gradient<'_>],
        operations: &[Operation],
    ) -> Result<ClipPlan, Error> {
        prepare(&self.context, gradients, operations, None).await
    }

    /// Prepares the plan of a shard whose partials can be read back. All shards together have `total_elements`. On native targets
    /// the future is ready at once.
    pub(crate) async fn prepare_shard(
        &self,
        gradients: &[Gradient<'_>],
        operations: &[Operation],
        total_elements: u64,
    ) -> Result<ClipPlan, Error> {
        prepare(&self.context, gradients, operations, Some(total_elements)).await
    }

    /// Returns the device.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        self.context.device()
    }

    pub(crate) fn checked_device(&self) -> &Arc<CheckedDevice> {
        self.context.checked_device()
    }
}

impl fmt::Debug for Clipper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clipper").field("device", self.device()).finish_non_exhaustive()
    }
}
