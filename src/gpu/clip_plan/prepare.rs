//! `prepare` makes a plan; `rebind` replaces the gradients of a plan that have moved.

use std::sync::Arc;

use super::ClipPlan;
use super::realize::realize;
use crate::Error;
use crate::gpu::device_context::DeviceContext;
#[cfg(not(target_arch = "wasm32"))]
use crate::gpu::error_scope::at_once;
use crate::gpu::gradient::Gradient;
use crate::operation::Operation;
use crate::plan::Plan;

/// Validates gradients, and prepares a plan for them. The future is ready at once unless the device is in a browser.
pub(in crate::gpu) async fn prepare(
    context: &Arc<DeviceContext>,
    gradients: &[Gradient<'_>],
    operations: &[Operation],
    total_elements: Option<u64>,
) -> Result<ClipPlan, Error> {
    let (plan, given) = Plan::of_operations(gradients, operations, context.limits(), total_elements)?;
    prepare_plan(context, plan, &given, None).await
}

impl ClipPlan {
    /// Replaces the buffers and ranges of the gradients, for a trainer whose gradients move. All state stays on the device:
    /// limits, the loss scale, norm histories, norm windows, step counts, the supplied norm. Buffers that other shaders bind,
    /// such as [`record_buffer`](Self::record_buffer), also stay. Nothing is read back.
    ///
    /// Call it between two steps. It costs as much as [`Clipper::prepare`](crate::Clipper::prepare) with compiled kernels. The
    /// new list also replaces the labels. Command buffers that were encoded earlier still use the old buffers.
    ///
    /// ```
    /// # let adapter = gradclip::adapters::enumerate().into_iter().next().expect("an adapter: scripts/test installs a software one");
    /// # let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
    /// # let buffer = || device.create_buffer(&wgpu::BufferDescriptor {
    /// #     label: None, size: 64, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false,
    /// # });
    /// # use gradclip::{Clip, Clipper, Gradient};
    /// let clip = Clip::by_global_norm(1.0).count_steps();
    /// let mut plan = Clipper::new(&device)?.prepare(&[Gradient::f32(&buffer())], clip)?;
    /// for step in 1..4 {
    ///     let gradient = buffer(); // from a memory pool
    ///     plan.rebind(&[Gradient::f32(&gradient)])?;
    ///     let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    ///     plan.encode(&mut encoder);
    ///     let counts = plan.read_back_step_counts(&mut encoder);
    ///     queue.submit([encoder.finish()]);
    ///     assert_eq!(counts.wait()?[0].steps, step);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::RebindCount`] or [`Error::RebindMismatch`] if the list differs from that of the plan in anything but buffers,
    /// ranges and labels; the errors of [`Clipper::prepare`](crate::Clipper::prepare). On error, the plan is unchanged.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn rebind(&mut self, gradients: &[Gradient<'_>]) -> Result<(), Error> {
        at_once(self.rebind_async(gradients))
    }

    /// `rebind` for a browser; see [`Clipper::prepare_async`](crate::Clipper::prepare_async). If the future is dropped, the plan is
    /// unchanged.
    ///
    /// # Errors
    ///
    /// Those of `rebind`: [`Error::RebindCount`] or [`Error::RebindMismatch`], and the errors of
    /// [`Clipper::prepare_async`](crate::Clipper::prepare_async). On error, the plan is unchanged.
    pub async fn rebind_async(&mut self, gradients: &[Gradient<'_>]) -> Result<(), Error> {
        let (plan, given) = self.plan.rebound(gradients)?;
        *self = prepare_plan(&self.context, plan, &given, Some(self)).await?;
        Ok(())
    }
}

/// Makes a plan on a device. `moved` is the plan of the same gradients before they moved.
async fn prepare_plan(
    context: &Arc<DeviceContext>,
    mut plan: Plan,
    given: &[&wgpu::Buffer],
    moved: Option<&ClipPlan>,
) -> Result<ClipPlan, Error> {
    let scratch = plan.scratch_bytes();
    let device = context.checked_device();
    let realized =
        device.in_error_scope_async("a clip plan", scratch, || realize(context, &plan, given, moved)).await;
    let (buffers, steps) = match realized {
        Ok(realized) => realized,
        Err(error) => {
            // In a browser a pipeline may be the invalid object.
            #[cfg(target_arch = "wasm32")]
            context.forget_pipelines();
            return Err(match error {
                Error::BufferRejected { gradient: None, .. } => {
                    find_rejected(context, &plan, given).await.unwrap_or(error)
                }
                error => error,
            });
        }
    };
    plan.forget_contents();
    Ok(ClipPlan { plan, context: context.clone(), buffers, steps })
}

/// Finds a gradient whose buffer, parameter or partials wgpu rejects, and returns the error that names it.
async fn find_rejected(context: &DeviceContext, plan: &Plan, given: &[&wgpu::Buffer]) -> Option<Error> {
    for (gradient, what, buffer) in plan.uses() {
        let check = || bind(context.device(), given[buffer]);
        if let Some(message) = context.checked_device().validation_error(check).await {
            return Some(what.error(Error::BufferRejected { gradient: Some(gradient), message }));
        }
    }
    None
}

/// Binds the first word of a buffer, to find out whether wgpu rejects it.
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
