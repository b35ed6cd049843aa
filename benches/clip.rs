//! Compares the GPU path with the CPU path: `cargo bench --bench clip`. benches/README.md describes the method.

use std::cell::LazyCell;
use std::ops::Deref;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use gradclip::adapters::is_software;
use gradclip::{Clip, ClipPlan, ClipRecord, Clipper, DType, Gradient, cpu, reference};
use wgpu::util::{BufferInitDescriptor, DeviceExt, DownloadBuffer};
use wgpu::{BufferUsages, CommandEncoder, CommandEncoderDescriptor, PollType};

const SHAPES: [Shape; 4] = [
    Shape::new("2^16", 1, 1 << 16),
    Shape::new("2^20", 1, 1 << 20),
    Shape::new("2^24", 1, 1 << 24),
    Shape::new("200x2^16", 200, 1 << 16),
];

/// The elements are uniform in [-1, 1), so that all norms are between 100 and 10000.
const CASES: [Case; 5] = [
    Case::new("norm", Limit::None, 1),
    Case::new("clip exceeded", Limit::GlobalNorm(1.0), 3),
    Case::new("clip not exceeded", Limit::GlobalNorm(1e6), 1),
    Case::new("clamp exceeded", Limit::Value(0.5), 2),
    Case::new("clamp not exceeded", Limit::Value(1.0), 1),
];

/// The maximum on a software adapter, where larger shapes would take minutes.
const MAX_ELEMENTS_IN_SOFTWARE: usize = 1 << 20;

/// The maximum relative error of norms and clipped elements against the f64 reference.
const TOLERANCE: f64 = 1e-6;

fn main() {
    env_logger::init();
    let gpu = Gpu::open();
    println!("CPU path: {} threads", cpu::threads());
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();

    for shape in SHAPES {
        let gradients = shape.gradients();
        for case in CASES {
            let expected = LazyCell::new(|| case.expected(&gradients));
            let mut group = criterion.benchmark_group(format!("{}/{}", case.name, shape.name));
            group.throughput(Throughput::BytesDecimal(case.passes * shape.bytes()));
            if let Some(gpu) = gpu.as_ref().filter(|gpu| gpu.supports(&shape)) {
                bench(&mut group, "gpu", &expected, || OnGpu::new(gpu, &gradients, case.clip()));
            }
            bench(&mut group, "cpu", &expected, || OnCpu::new(&gradients, case.clip()));
        }
    }
    criterion.final_summary();
}

/// Checks the result of a path, then times it.
fn bench<P: Path>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    expected: &impl Deref<Target = Outcome>,
    open: impl Fn() -> P,
) {
    let mut checked = None;
    group.bench_function(name, |bencher| {
        // Prepared here, so that filtered benchmarks cost nothing.
        let path = checked.get_or_insert_with(|| {
            let mut path = open();
            timed(&mut path);
            expected.check(&path.outcome());
            path
        });
        bencher.iter_custom(|runs| (0..runs).map(|_| timed(path)).sum());
    });
}

fn timed(path: &mut impl Path) -> Duration {
    path.restore();
    let start = Instant::now();
    path.clip();
    start.elapsed()
}

/// The number of gradients and the elements of each.
struct Shape {
    name: &'static str,
    tensors: usize,
    elements: usize,
}

impl Shape {
    const fn new(name: &'static str, tensors: usize, elements: usize) -> Self {
        Self { name, tensors, elements }
    }

    fn bytes(&self) -> u64 {
        (self.tensors * self.elements * size_of::<f32>()) as u64
    }

    fn gradients(&self) -> Vec<Vec<f32>> {
        let mut state = 1_u32;
        let mut random = || {
            // The linear congruential generator of Numerical Recipes. Its low bits are poor and are shifted out.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..self.tensors).map(|_| (0..self.elements).map(|_| random()).collect()).collect()
    }
}

struct Case {
    name: &'static str,
    limit: Limit,
    /// The minimum number of read and write passes over the gradients.
    passes: u64,
}

enum Limit {
    None,
    GlobalNorm(f32),
    Value(f32),
}

impl Case {
    const fn new(name: &'static str, limit: Limit, passes: u64) -> Self {
        Self { name, limit, passes }
    }

    fn clip(&self) -> Clip {
        match self.limit {
            Limit::None => Clip::by_global_norm(1.0).coefficient_only(),
            Limit::GlobalNorm(max_norm) => Clip::by_global_norm(max_norm),
            Limit::Value(clip_value) => Clip::by_value(clip_value),
        }
    }

    fn expected(&self, gradients: &[Vec<f32>]) -> Outcome {
        let slices: Vec<&[f32]> = gradients.iter().map(Vec::as_slice).collect();
        let norm = reference::total_norm(&slices);
        let each = |operation: &dyn Fn(f32) -> f32| {
            let clipped = |gradient: &Vec<f32>| gradient.iter().map(|&g| operation(g)).collect();
            gradients.iter().map(clipped).collect()
        };
        match self.limit {
            Limit::None => Outcome { norm: Some(norm), gradients: gradients.to_vec() },
            Limit::GlobalNorm(max_norm) => {
                let coef = reference::clip_coef(norm, max_norm.into());
                Outcome { norm: Some(norm), gradients: each(&|g| reference::scale(g, coef)) }
            }
            Limit::Value(clip_value) => {
                Outcome { norm: None, gradients: each(&|g| reference::clamp(g, -clip_value, clip_value)) }
            }
        }
    }
}

/// The expected or actual result of a clip.
struct Outcome {
    norm: Option<f64>,
    gradients: Vec<Vec<f32>>,
}

impl Outcome {
    fn check(&self, found: &Self) {
        let close = |expected: f64, found: f64| (found - expected).abs() <= TOLERANCE * expected.abs();
        match (self.norm, found.norm) {
            (Some(expected), Some(found)) => {
                assert!(close(expected, found), "the norm is {found}, but it should be {expected}");
            }
            (expected, found) => assert_eq!(expected, found, "one of the norms is missing"),
        }
        assert_eq!(self.gradients.len(), found.gradients.len(), "gradients are missing");
        for (expected, found) in self.gradients.iter().zip(&found.gradients) {
            assert_eq!(expected.len(), found.len(), "elements are missing");
            for (&expected, &found) in expected.iter().zip(found) {
                assert!(
                    close(expected.into(), found.into()),
                    "an element is {found}, but it should be {expected}"
                );
            }
        }
    }
}

/// A path with its own copy of the gradients. Only `clip` is timed.
trait Path {
    /// Restores the original gradients.
    fn restore(&mut self);
    fn clip(&mut self);
    fn outcome(&self) -> Outcome;
}

struct OnCpu<'a> {
    originals: &'a [Vec<f32>],
    gradients: Vec<Vec<f32>>,
    clip: Clip,
    record: Option<ClipRecord>,
}

impl<'a> OnCpu<'a> {
    fn new(originals: &'a [Vec<f32>], clip: Clip) -> Self {
        Self { originals, gradients: originals.to_vec(), clip, record: None }
    }
}

impl Path for OnCpu<'_> {
    fn restore(&mut self) {
        for (gradient, original) in self.gradients.iter_mut().zip(self.originals) {
            gradient.copy_from_slice(original);
        }
    }

    fn clip(&mut self) {
        let mut list: Vec<_> =
            self.gradients.iter_mut().map(|gradient| cpu::Gradient::f32(gradient)).collect();
        let records = cpu::clip(&mut list, self.clip).expect("the limits are valid");
        self.record = records.first().copied();
    }

    fn outcome(&self) -> Outcome {
        Outcome {
            norm: self.record.map(|record| record.total_norm.into()),
            gradients: self.gradients.clone(),
        }
    }
}

struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    software: bool,
}

impl Gpu {
    /// Opens the best adapter with all its limits and prints its name.
    fn open() -> Option<Self> {
        let Some(adapter) = gradclip::adapters::enumerate().into_iter().next() else {
            println!("GPU path: no adapter");
            return None;
        };
        let info = adapter.get_info();
        let software = is_software(&info);
        println!("GPU path: {} ({}, {:?})", info.name, info.backend, info.device_type);
        if software {
            println!(
                "  This is a software adapter. Its times say nothing about GPU speed, and larger shapes are skipped."
            );
        }
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            required_limits: adapter.limits(),
            ..Default::default()
        });
        let (device, queue) = pollster::block_on(request).expect("the adapter opens");
        Some(Self { device, queue, software })
    }

    fn supports(&self, shape: &Shape) -> bool {
        !self.software || shape.tensors * shape.elements <= MAX_ELEMENTS_IN_SOFTWARE
    }

    /// Records commands with `encode`, submits them and waits.
    fn run<T>(&self, encode: impl FnOnce(&mut CommandEncoder) -> T) -> T {
        let mut encoder = self.device.create_command_encoder(&CommandEncoderDescriptor::default());
        let encoded = encode(&mut encoder);
        self.queue.submit([encoder.finish()]);
        self.wait();
        encoded
    }

    fn wait(&self) {
        self.device.poll(PollType::wait_indefinitely()).expect("the device finishes");
    }

    fn upload(&self, floats: &[f32], usage: BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer_init(&BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(floats),
            usage,
        })
    }

    fn download(&self, buffer: &wgpu::Buffer) -> Vec<f32> {
        let (sender, receiver) = mpsc::channel();
        DownloadBuffer::read_buffer(&self.device, &self.queue, &buffer.slice(..), move |bytes| {
            let _ = sender.send(bytes);
        });
        self.wait();
        let bytes = receiver.recv().expect("the callback ran");
        bytemuck::pod_collect_to_vec(&bytes.expect("the buffer can be read"))
    }
}

struct OnGpu<'a> {
    gpu: &'a Gpu,
    originals: Vec<wgpu::Buffer>,
    gradients: Vec<wgpu::Buffer>,
    plan: ClipPlan,
}

impl<'a> OnGpu<'a> {
    fn new(gpu: &'a Gpu, originals: &[Vec<f32>], clip: Clip) -> Self {
        let buffers = |usage| originals.iter().map(|floats| gpu.upload(floats, usage)).collect();
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let gradients: Vec<_> = buffers(usage);
        let to_clip: Vec<_> = gradients.iter().map(|buffer| Gradient::new(buffer, DType::F32)).collect();
        let plan = Clipper::new(&gpu.device)
            .and_then(|clipper| clipper.prepare(&to_clip, clip))
            .expect("the device can clip this");
        Self { gpu, originals: buffers(BufferUsages::COPY_SRC), gradients, plan }
    }
}

impl Path for OnGpu<'_> {
    fn restore(&mut self) {
        self.gpu.run(|encoder| {
            for (original, gradient) in self.originals.iter().zip(&self.gradients) {
                encoder.copy_buffer_to_buffer(original, 0, gradient, 0, original.size());
            }
        });
    }

    fn clip(&mut self) {
        self.gpu.run(|encoder| self.plan.encode(encoder));
    }

    fn outcome(&self) -> Outcome {
        let read_back = |_| self.gpu.run(|encoder| self.plan.read_back(encoder));
        let record = self.plan.record_buffer().map(read_back);
        Outcome {
            norm: record.map(|ticket| ticket.wait().expect("the record arrives").total_norm.into()),
            gradients: self.gradients.iter().map(|buffer| self.gpu.download(buffer)).collect(),
        }
    }
}
