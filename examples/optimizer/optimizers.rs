//! SGD, Adam and AdamW on wgpu, with clipping inside: copy this file and the `.wgsl` files beside it into your trainer.
//!
//! A scale pass reads and writes all gradients. An optimizer reads them anyway, so [`Optimizer`] multiplies each gradient
//! by the factor in the record of a plan with [`coefficient_only`](gradclip::Clip::coefficient_only). The factor includes
//! the inverse loss scale. For f32, f16 and bf16 gradients, the parameters and the state get the same bits as from a scale
//! pass followed by the same optimizer. There is one exception: if the factor is below 2^-126, a device may flush subnormal
//! products to 0.
//!
//! A skipped step changes nothing. Adam's bias correction uses the number of steps that were not skipped, from the plan's
//! [step counts](gradclip::Clip::count_steps), which stay on the device.
#![allow(dead_code, reason = "no program uses all of it")]

use bytemuck::{Pod, Zeroable};
use gradclip::stats::STEP_COUNTS_WGSL;
use gradclip::wgpu::util::{BufferInitDescriptor, DeviceExt as _};
use gradclip::wgpu::{self, BufferUsages, CommandEncoder, Device, Queue};
use gradclip::{CLIP_RECORD_WGSL, ClipPlan, DType};

/// The hyperparameters of SGD, with the names and defaults of `torch.optim.SGD`. The dampening is 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sgd {
    pub(crate) learning_rate: f64,
    pub(crate) momentum: f64,
    pub(crate) weight_decay: f64,
    pub(crate) nesterov: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { learning_rate: 1e-3, momentum: 0.0, weight_decay: 0.0, nesterov: false }
    }
}

/// The hyperparameters of Adam and AdamW, with the names of `torch.optim`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adam {
    pub(crate) learning_rate: f64,
    pub(crate) betas: [f64; 2],
    pub(crate) epsilon: f64,
    pub(crate) weight_decay: f64,
}

impl Default for Adam {
    /// The defaults of `torch.optim.Adam`. `torch.optim.AdamW` has a weight decay of 0.01.
    fn default() -> Self {
        Self { learning_rate: 1e-3, betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// The outcome of a clip, as an optimizer reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clipped<'a> {
    /// One [`ClipRecord`](gradclip::ClipRecord).
    pub(crate) record: &'a wgpu::Buffer,
    /// One [`StepCounts`](gradclip::stats::StepCounts), which already includes the current step.
    pub(crate) step_counts: &'a wgpu::Buffer,
}

impl<'a> Clipped<'a> {
    /// Returns the outcome of a plan with one record, or None if the plan does not keep
    /// [step counts](gradclip::Clip::count_steps).
    pub(crate) fn by(plan: &'a ClipPlan) -> Option<Self> {
        Some(Self { record: plan.record_buffer()?, step_counts: plan.step_counts_buffer()? })
    }
}

/// The parameters of one tensor, and their gradients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor<'a> {
    /// f32. The length of the buffer is the number of parameters.
    pub(crate) parameters: &'a wgpu::Buffer,
    /// As many gradients as parameters. With an odd number of 16-bit gradients, the upper half of the last word is unused.
    pub(crate) gradients: &'a wgpu::Buffer,
    /// The type of the gradients.
    pub(crate) dtype: DType,
}

/// An optimizer with its state.
#[derive(Debug)]
pub(crate) struct Optimizer {
    steps: Vec<Step>,
    states: Vec<wgpu::Buffer>,
    hyperparameters: wgpu::Buffer,
}

/// One dispatch.
#[derive(Debug)]
struct Step {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: u32,
}

/// `Hyperparameters` of optimizer.wgsl.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct Hyperparameters {
    learning_rate: f32,
    weight_decay: f32,
    momentum: f32,
    nesterov: u32,
    complement1: f32,
    complement2: f32,
    epsilon: f32,
    zero: u32,
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is intended")]
impl From<Sgd> for Hyperparameters {
    fn from(sgd: Sgd) -> Self {
        Self {
            learning_rate: sgd.learning_rate as f32,
            weight_decay: sgd.weight_decay as f32,
            momentum: sgd.momentum as f32,
            nesterov: sgd.nesterov.into(),
            ..Self::default()
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is intended")]
impl From<Adam> for Hyperparameters {
    fn from(adam: Adam) -> Self {
        Self {
            learning_rate: adam.learning_rate as f32,
            weight_decay: adam.weight_decay as f32,
            complement1: (1.0 - adam.betas[0]) as f32,
            complement2: (1.0 - adam.betas[1]) as f32,
            epsilon: adam.epsilon as f32,
            ..Self::default()
        }
    }
}

impl Optimizer {
    /// Creates stochastic gradient descent. Its state is one f32 for each parameter: the momentum.
    pub(crate) fn sgd(device: &Device, clipped: Clipped, tensors: &[Tensor], sgd: Sgd) -> Self {
        Self::new(device, clipped, tensors, include_str!("sgd.wgsl"), 1, sgd.into())
    }

    /// Creates Adam, which adds the weight decay to the gradient. Its state is two f32 for each parameter: the moments.
    pub(crate) fn adam(device: &Device, clipped: Clipped, tensors: &[Tensor], adam: Adam) -> Self {
        let rule = concat!(include_str!("moments.wgsl"), include_str!("adam.wgsl"));
        Self::new(device, clipped, tensors, rule, 2, adam.into())
    }

    /// Creates AdamW, which applies the weight decay to the parameter. It has the same state as [`adam`](Self::adam).
    pub(crate) fn adamw(device: &Device, clipped: Clipped, tensors: &[Tensor], adam: Adam) -> Self {
        let rule = concat!(include_str!("moments.wgsl"), include_str!("adamw.wgsl"));
        Self::new(device, clipped, tensors, rule, 2, adam.into())
    }

    fn new(
        device: &Device,
        clipped: Clipped,
        tensors: &[Tensor],
        rule: &str,
        state_len: u64,
        hyperparameters: Hyperparameters,
    ) -> Self {
        let hyperparameters = device.create_buffer_init(&BufferInitDescriptor {
            label: Some("hyperparameters"),
            contents: bytemuck::bytes_of(&hyperparameters),
            usage: BufferUsages::UNIFORM | BufferUsages::COPY_DST,
        });
        // wgpu fills new buffers with 0.
        let zeros = |label, size| {
            let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let states: Vec<_> =
            tensors.iter().map(|tensor| zeros("state", state_len * tensor.parameters.size())).collect();

        let mut pipelines: Vec<(DType, wgpu::ComputePipeline)> = Vec::new();
        let mut steps = Vec::new();
        for (tensor, state) in tensors.iter().zip(&states) {
            let compiled = pipelines.iter().find(|(dtype, _)| *dtype == tensor.dtype);
            let pipeline =
                compiled.map_or_else(|| pipeline(device, &wgsl(rule, tensor.dtype)), |it| it.1.clone());
            let buffers = [
                clipped.record,
                clipped.step_counts,
                &hyperparameters,
                tensor.gradients,
                tensor.parameters,
                state,
            ];
            let most = device.limits().max_compute_workgroups_per_dimension;
            let workgroups = (tensor.parameters.size() / 4).div_ceil(WORKGROUP_SIZE.into());
            let workgroups = u32::try_from(workgroups).map_or(most, |workgroups| workgroups.min(most));
            steps.push(Step::new(&pipeline, device, &buffers, workgroups));
            pipelines.push((tensor.dtype, pipeline));
        }
        Self { steps, states, hyperparameters }
    }

    /// Encodes one step. Encode the plan first.
    pub(crate) fn encode(&self, encoder: &mut CommandEncoder) {
        let descriptor = wgpu::ComputePassDescriptor { label: Some("optimizer"), timestamp_writes: None };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        for Step { pipeline, bind_group, workgroups } in &self.steps {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(*workgroups, 1, 1);
        }
    }

    /// Changes the learning rate for all later submissions.
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is intended")]
    pub(crate) fn set_learning_rate(&self, queue: &Queue, learning_rate: f64) {
        // The first field.
        queue.write_buffer(&self.hyperparameters, 0, bytemuck::bytes_of(&(learning_rate as f32)));
    }

    /// Returns the state of each tensor, to save with a checkpoint or to restore: the momentum of each parameter, or both
    /// moments of each parameter.
    pub(crate) fn states(&self) -> &[wgpu::Buffer] {
        &self.states
    }
}

const WORKGROUP_SIZE: u32 = 64;

/// Returns the shader of a rule for a type of gradients.
fn wgsl(rule: &str, dtype: DType) -> String {
    let elements = match dtype {
        DType::F32 => include_str!("elements/f32.wgsl"),
        DType::F16 => include_str!("elements/f16.wgsl"),
        DType::BF16 => include_str!("elements/bf16.wgsl"),
        other => unreachable!("gradclip clips no gradients of type {other}"),
    };
    let workgroup_size = format!("const WORKGROUP_SIZE = {WORKGROUP_SIZE}u;\n");
    let optimizer = include_str!("optimizer.wgsl");
    [&workgroup_size, CLIP_RECORD_WGSL, STEP_COUNTS_WGSL, elements, rule, optimizer].concat()
}

fn pipeline(device: &Device, wgsl: &str) -> wgpu::ComputePipeline {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("optimizer"),
        source: wgpu::ShaderSource::Wgsl(wgsl.into()),
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("optimizer"),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    })
}

impl Step {
    /// Binds `buffers` to the bindings 0, 1, 2, ... of group 0.
    fn new(
        pipeline: &wgpu::ComputePipeline,
        device: &Device,
        buffers: &[&wgpu::Buffer],
        workgroups: u32,
    ) -> Self {
        let entries = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() });
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("optimizer"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries.collect::<Vec<_>>(),
        });
        Self { pipeline: pipeline.clone(), bind_group, workgroups }
    }
}
