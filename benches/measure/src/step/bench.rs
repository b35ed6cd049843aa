//! Checks and times the training step on one set.

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use gradclip::kernels::Producer;
use gradclip::kernels::tables::tile_elements;
use gradclip::{CLIP_RECORD_WGSL, ClipPlan, ClipRecord, DType, Gradient, Partials, wgpu};
use rayon::prelude::*;
use wgpu::{BindGroup, Buffer, BufferUsages, CommandEncoder, ComputePipeline};

use super::Way;
use crate::data::CHUNK_BYTES;
use crate::device::{GpuDevice, STAGING, allocate, allocate_one};
use crate::ops::Op;
use crate::sets::GradientSet;
use crate::timing::Sample;

/// `LEARNING_RATE` of `sgd.wgsl`.
const LEARNING_RATE: f32 = 1.0 / 1024.0;
/// The elements of a workgroup of `sgd.wgsl`.
const SGD_ELEMENTS: u64 = 4096;
const WORKGROUP_SIZE: u32 = 256;
/// The seeds of the pseudo-random elements.
const GRADIENT_SEED: u32 = 0;
const PARAMETER_SEED: u32 = 1 << 31;
/// The distance of two tensors in the uniform buffer, which no device's offset alignment exceeds.
const UNIFORM_STRIDE: usize = 256;

/// A set on the device: an arena of gradients, an arena of parameters, and the kernels of a step.
#[derive(Debug)]
pub struct StepBench<'a> {
    gpu: &'a GpuDevice,
    /// The global norm, in f64.
    norm: f64,
    parameters: Buffer,
    partials: Buffer,
    /// The kernels that produce each tensor.
    tensors: Vec<Dispatch>,
    /// The same kernels, which also leave partials.
    tensors_with_partials: Vec<Dispatch>,
    /// Sets the parameters to their initial values.
    initialise: Dispatch,
    ways: Vec<WayPlan>,
}

/// A pipeline with its bind group and its number of workgroups.
#[derive(Debug)]
struct Dispatch {
    pipeline: ComputePipeline,
    bind_group: BindGroup,
    workgroups: u32,
}

/// The plan of a way, which [`Way::WithoutClip`] has not, and the SGD that follows.
#[derive(Debug)]
struct WayPlan {
    way: Way,
    plan: Option<ClipPlan>,
    sgd: Dispatch,
}

impl<'a> StepBench<'a> {
    /// Prepares every way on the tensors of a set of f32 gradients. Their lengths must be multiples of 64.
    pub fn new(gpu: &'a GpuDevice, set: &GradientSet) -> Result<Self> {
        let elements = set.elements() as u64;
        let (bytes, largest) = (set.bytes() as u64, gpu.device.limits().max_storage_buffer_binding_size);
        ensure!(bytes <= largest, "the step binds {bytes} bytes, but the device allows at most {largest}");
        let usage = BufferUsages::STORAGE | BufferUsages::UNIFORM | BufferUsages::COPY_DST;
        let uniform = allocate_one(&gpu.device, UNIFORM_STRIDE * (set.lens.len() + 1), usage)?;
        let norm = norm(elements);
        let clip = Op::Exceeded.clip(norm);
        // Runs as long as the plan's tiles have the bits of the norm pass.
        let tile = tile_elements(elements);
        let vectors = u32::try_from(tile / u64::from(4 * WORKGROUP_SIZE))?;
        let producer = Producer::new(clip, DType::F32)?.shape(WORKGROUP_SIZE, vectors);
        let runs = |elements: u64| elements.div_ceil(producer.elements());

        let mut table = vec![0_u32; UNIFORM_STRIDE / 4 * (set.lens.len() + 1)];
        let (mut ranges, mut first_runs): (Vec<Range<u64>>, Vec<u64>) = (Vec::new(), Vec::new());
        let (mut first, mut first_run) = (0, 0);
        for &len in &set.lens {
            ensure!(len % 64 == 0, "a tensor of the step has {len} elements, which is no multiple of 64");
            ranges.push(first..first + len as u64);
            first_runs.push(first_run);
            (first, first_run) = (first + len as u64, first_run + runs(len as u64));
        }
        let tensors = ranges.iter().zip(&first_runs).map(|(range, &run)| (range.clone(), run, GRADIENT_SEED));
        let all: Vec<_> = tensors.chain([(0..elements, 0, PARAMETER_SEED)]).collect();
        for ((range, run, seed), entry) in all.iter().zip(table.chunks_mut(UNIFORM_STRIDE / 4)) {
            let words = [
                u32::try_from(range.start)?,
                u32::try_from(range.end - range.start)?,
                u32::try_from(*run)?,
                *seed,
            ];
            entry[..4].copy_from_slice(&words);
        }
        gpu.write(&uniform, bytemuck::cast_slice(&table))?;

        let partial_bytes = usize::try_from(first_run * producer.partial_bytes())?;
        let sizes = [set.bytes(), set.bytes(), partial_bytes];
        let [gradients, parameters, partials] =
            <[Buffer; 3]>::try_from(allocate(&gpu.device, &sizes)?).expect("three buffers");

        let text = producer.wgsl()? + include_str!("produce.wgsl");
        let [produce, produce_with_partials] =
            ["produce", "produce_with_partials"].map(|entry| pipeline(&gpu.device, &text, entry));
        let dispatch = |pipeline: &ComputePipeline, index: usize, buffers: &[&Buffer]| {
            let (range, ..) = &all[index];
            let entry = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &uniform,
                offset: (UNIFORM_STRIDE * index) as u64,
                size: wgpu::BufferSize::new(16),
            });
            let resources =
                [entry].into_iter().chain(buffers.iter().map(|buffer| buffer.as_entire_binding()));
            Dispatch::new(&gpu.device, pipeline, resources, runs(range.end - range.start))
        };
        let tensors = 0..ranges.len();
        let bench = Self {
            tensors: tensors
                .clone()
                .map(|index| dispatch(&produce, index, &[&gradients]))
                .collect::<Result<_>>()?,
            tensors_with_partials: tensors
                .map(|index| dispatch(&produce_with_partials, index, &[&gradients, &partials]))
                .collect::<Result<_>>()?,
            initialise: dispatch(&produce, ranges.len(), &[&parameters])?,
            gpu,
            norm,
            parameters,
            partials,
            ways: Vec::new(),
        };

        let text = format!("{CLIP_RECORD_WGSL}{}", include_str!("sgd.wgsl"));
        let [step, step_with_factor] =
            ["step", "step_with_factor"].map(|entry| pipeline(&gpu.device, &text, entry));
        let prepare = |way: Way| {
            let tensor = |(index, range): (usize, &Range<u64>)| {
                let gradient = Gradient::f32(&gradients).elements(range.clone());
                let first_partial = first_runs[index] * producer.partial_bytes();
                match way {
                    Way::Parts => gradient.part(index),
                    Way::Partials => gradient
                        .partials(Partials::new(&bench.partials, producer.elements()).offset(first_partial)),
                    _ => gradient,
                }
            };
            let list: Vec<_> = ranges.iter().enumerate().map(tensor).collect();
            let clip = match way {
                Way::WithoutClip => None,
                Way::PlainClip => Some(clip),
                Way::Coefficient | Way::Parts | Way::Partials => Some(clip.coefficient_only()),
            };
            let plan = clip.map(|clip| gpu.clipper.prepare(&list, clip)).transpose()?;
            let buffers = [&gradients, &bench.parameters];
            let record = plan.as_ref().filter(|_| way != Way::PlainClip).and_then(ClipPlan::record_buffer);
            let pipeline = if record.is_some() { &step_with_factor } else { &step };
            let resources = buffers.into_iter().chain(record).map(Buffer::as_entire_binding);
            let sgd = Dispatch::new(&gpu.device, pipeline, resources, elements.div_ceil(SGD_ELEMENTS))?;
            Ok(WayPlan { way, plan, sgd })
        };
        let ways = Way::ALL.map(prepare).into_iter().collect::<Result<_>>()?;
        Ok(Self { ways, ..bench })
    }

    fn find(&self, way: Way) -> &WayPlan {
        self.ways.iter().find(|plan| plan.way == way).expect("every way has a plan")
    }

    /// Records a step. Returns only errors of a plan that is not as [`StepBench::new`] prepared it.
    fn encode(&self, way: Way, encoder: &mut CommandEncoder) -> Result<(), gradclip::Error> {
        let WayPlan { plan, sgd, .. } = self.find(way);
        let tensors = if way == Way::Partials { &self.tensors_with_partials } else { &self.tensors };
        for (index, tensor) in tensors.iter().enumerate() {
            tensor.encode("produce", encoder);
            if let Some(plan) = plan.as_ref().filter(|_| way == Way::Parts) {
                plan.encode_part(encoder, index)?;
            }
        }
        match (way, plan) {
            (Way::Parts, Some(plan)) => plan.encode_record(encoder)?,
            (_, Some(plan)) => plan.encode(encoder),
            _ => {}
        }
        sgd.encode("sgd", encoder);
        Ok(())
    }

    /// Runs a step once and checks the record and all parameters.
    ///
    /// The record has the bits of the plain clip's, and each parameter the bits of its formula on the host.
    pub fn check(&self, way: Way) -> Result<()> {
        let run = |way: Way| {
            let mut encoder = self.gpu.encoder();
            self.initialise.encode("initialise", &mut encoder);
            self.encode(way, &mut encoder)?;
            let record = self.find(way).plan.as_ref().map(|plan| plan.read_back(&mut encoder));
            self.gpu.submit_and_wait([encoder.finish()])?;
            record.map(|record| record.wait().map_err(anyhow::Error::from)).transpose()
        };
        let plain = run(Way::PlainClip)?.context("the plain clip has a record")?;
        Op::Exceeded.check_record(&plain, self.norm)?;
        let record = run(way)?;
        if let Some(record) = &record {
            let same = bytemuck::bytes_of(record) == bytemuck::bytes_of(&plain);
            ensure!(same, "the record is {record:?}, but that of the plain clip is {plain:?}");
        }
        self.check_parameters(record.as_ref())
    }

    fn check_parameters(&self, record: Option<&ClipRecord>) -> Result<()> {
        let factor = record.map_or(1.0, |record| record.factor);
        let size = self.parameters.size();
        for start in (0..size).step_by(STAGING) {
            let len = (size - start).min(STAGING as u64);
            self.gpu.run(|encoder| {
                encoder.copy_buffer_to_buffer(&self.parameters, start, &self.gpu.staging, 0, len);
            })?;
            self.gpu.read_mapped(&self.gpu.staging, |bytes| {
                let found: &[f32] = bytemuck::cast_slice(&bytes[..usize::try_from(len)?]);
                let indices = u32::try_from(start / 4)?..u32::try_from((start + len) / 4)?;
                let wrong = found.par_iter().zip(indices).find_map_any(|(&found, index)| {
                    let expected = parameter_after_step(index, factor);
                    (found.to_bits() != expected.to_bits()).then_some((index, found, expected))
                });
                match wrong {
                    None => Ok(()),
                    Some((index, found, expected)) => {
                        anyhow::bail!(
                            "parameter {index} is {found:?} after the step, but it should be {expected:?}"
                        )
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Times one step.
    pub fn time(&self, way: Way) -> Result<Sample> {
        let mut encoded = Ok(());
        let sample = self.gpu.time(false, |encoder| encoded = self.encode(way, encoder))?;
        encoded?;
        Ok(sample)
    }

    /// Returns the number of dispatches of the clip.
    pub fn dispatches(&self, way: Way) -> usize {
        self.find(way).plan.as_ref().map_or(0, ClipPlan::dispatches)
    }

    /// Returns the minimum number of bytes that the clip moves.
    pub fn bytes(&self, way: Way) -> usize {
        let size = |buffer: &Buffer| usize::try_from(buffer.size()).unwrap_or(usize::MAX);
        way.bytes(size(&self.parameters), size(&self.partials))
    }
}

impl Dispatch {
    fn new<'b>(
        device: &wgpu::Device,
        pipeline: &ComputePipeline,
        resources: impl Iterator<Item = wgpu::BindingResource<'b>>,
        workgroups: u64,
    ) -> Result<Self> {
        let most = device.limits().max_compute_workgroups_per_dimension;
        ensure!(
            workgroups <= most.into(),
            "a step needs {workgroups} workgroups, but the device allows {most}"
        );
        let entries: Vec<_> = (0..)
            .zip(resources)
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Ok(Self { pipeline: pipeline.clone(), bind_group, workgroups: u32::try_from(workgroups)? })
    }

    fn encode(&self, label: &str, encoder: &mut CommandEncoder) {
        let descriptor = wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}

fn pipeline(device: &wgpu::Device, text: &str, entry: &str) -> ComputePipeline {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(entry),
        source: wgpu::ShaderSource::Wgsl(text.into()),
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(entry),
        layout: None,
        module: &module,
        entry_point: Some(entry),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    })
}

/// Returns an element that `produce.wgsl` writes: pseudo-random, uniform in [-1, 1).
fn uniform(index: u32, seed: u32) -> f32 {
    let state = index.wrapping_add(seed).wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
    let hash = (word >> 22) ^ word;
    // 24 bits are exact in f32.
    (hash >> 8) as f32 / 8_388_608.0 - 1.0
}

/// Returns a parameter after one step with gradients that are multiplied by `factor`.
fn parameter_after_step(index: u32, factor: f32) -> f32 {
    // The learning rate is a power of two, so that only two operations round.
    let scaled = uniform(index, GRADIENT_SEED) * factor;
    uniform(index, PARAMETER_SEED) - LEARNING_RATE * scaled
}

/// Computes the global norm of the gradients in f64.
fn norm(elements: u64) -> f64 {
    const CHUNK: u64 = CHUNK_BYTES as u64 / 4;
    let chunks: Vec<u64> = (0..elements).step_by(CHUNK_BYTES / 4).collect();
    let square = |&start: &u64| {
        let indices = start..(start + CHUNK).min(elements);
        #[expect(clippy::cast_possible_truncation, reason = "u32 indices: `new` checks them")]
        indices.map(|index| f64::from(uniform(index as u32, GRADIENT_SEED)).powi(2)).sum::<f64>()
    };
    // Collected first: the order of the sum does not depend on the threads.
    chunks.par_iter().map(square).collect::<Vec<f64>>().iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradclip::slices::DeviceChoice;

    #[test]
    fn elements_are_uniform_and_parameters_differ_from_gradients() {
        let mean = |seed| (0..10_000).map(|index| f64::from(uniform(index, seed))).sum::<f64>() / 10_000.0;
        assert!(mean(GRADIENT_SEED).abs() < 0.02 && mean(PARAMETER_SEED).abs() < 0.02);
        // The variance of a uniform distribution over [-1, 1) is 1/3.
        assert!((norm(3_000_000) / 1000.0 - 1.0).abs() < 0.001, "{}", norm(3_000_000));
        let same = (0..1000)
            .filter(|&i| uniform(i, GRADIENT_SEED).to_bits() == uniform(i, PARAMETER_SEED).to_bits());
        assert!(same.count() < 3);
    }

    /// All ways pass their checks on several tensors with long runs, and a wrong parameter fails.
    #[test]
    fn all_ways_are_checked() {
        let gpu = GpuDevice::open(&DeviceChoice::Gpu, Some(0)).unwrap().expect("an adapter");
        let new = |lens| StepBench::new(&gpu, &GradientSet::new("any", DType::F32, lens));
        let bench = new(vec![4096 * 3 + 64, 64, 1 << 14]).unwrap();
        for way in Way::ALL {
            bench.check(way).unwrap();
            // Again: partials and parts were reset.
            bench.check(way).unwrap();
        }
        let dispatches = Way::ALL.map(|way| bench.dispatches(way));
        assert_eq!((dispatches[0], dispatches[3], dispatches[4]), (0, 4, 1), "{dispatches:?}");
        // 4 + 1 + 4 runs.
        assert_eq!(bench.bytes(Way::Partials), 8 * 9);
        let mut record = ClipRecord::FAILED;
        record.factor = 0.75; // half of the norm has 0.5
        assert!(bench.check_parameters(Some(&record)).is_err());
        // Long tiles.
        new(vec![1 << 23, 64]).unwrap().check(Way::Partials).unwrap();
        assert!(new(vec![4]).is_err());
    }
}
