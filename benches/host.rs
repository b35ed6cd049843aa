//! Times the host's part of a clip for several numbers of gradient buffers: `cargo bench --bench host`.
//!
//! `encode` is the time to record a step. `ready` also includes creating and finishing the encoder; the time for an
//! encoder with an empty pass is printed for comparison. `prepare` is the time to prepare a plan again for buffers that
//! have moved. The buffers are small, and the times exclude all work of the GPU. `--json` prints one line per number of
//! buffers for `gradclip bench --check`; `--device` names the adapter.
//!
//! The bench does not use criterion: criterion would choose the number of repetitions by the timed part, which is only
//! a small part of a step.

use std::time::Instant;

use gradclip::slices::DeviceChoice;
use gradclip::{Clip, Clipper, DType, Gradient, adapters};
use serde_json::json;
use wgpu::{BufferUsages, CommandEncoder, PollType};

/// One arena, and the tensor counts of ResNet-50 and Llama-7B.
const BUFFERS: [usize; 3] = [1, 161, 291];
/// Small, but one buffer is too large for a small clip, which would be a single dispatch.
const BYTES: u64 = 80 << 10;

fn main() {
    env_logger::init();
    // Under `cargo test` everything runs once.
    let arguments: Vec<String> = std::env::args().collect();
    let given = |name: &str| arguments.iter().position(|argument| argument == name);
    let repetitions = if given("--bench").is_some() { 101 } else { 1 };
    let name = given("--device").map_or("gpu", |at| arguments.get(at + 1).expect("--device has a value"));
    let choice: DeviceChoice = name.parse().expect("every name is a valid device choice");
    let mut adapters = adapters::enumerate();
    let index = choice.choose(&adapters).unwrap_or_else(|error| panic!("{error}"));
    let adapter = adapters.swap_remove(index.expect("the CPU path has no plans"));
    let required_limits = Clipper::recommended_limits(&adapter, &wgpu::Limits::default());
    let descriptor = wgpu::DeviceDescriptor { required_limits, ..wgpu::DeviceDescriptor::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect("the adapter opens");
    let clipper = Clipper::new(&device).expect("the adapter meets WebGPU's baseline");
    let host = Host { device, queue, repetitions };

    let (gpu, json) = (adapter.get_info().name, given("--json").is_some());
    if !json {
        let empty =
            host.step(|encoder| drop(encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default())));
        println!("{gpu}; medians of {repetitions}, in µs");
        println!("an encoder with an empty pass: ready {:.1}", empty.ready);
    }
    for count in BUFFERS {
        let (size, usage) = (BYTES, BufferUsages::STORAGE);
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let buffers: Vec<_> = (0..count).map(|_| host.device.create_buffer(&descriptor)).collect();
        let gradients: Vec<_> = buffers.iter().map(|buffer| Gradient::new(buffer, DType::F32)).collect();
        let prepare =
            || clipper.prepare(&gradients, Clip::by_global_norm(1.0)).expect("the device can clip this");
        let plan = prepare();
        let Times { encode, ready } = host.step(|encoder| plan.encode(encoder));
        let again = host.median(|| {
            let start = Instant::now();
            let plan = prepare();
            let seconds = start.elapsed().as_secs_f64();
            drop(plan);
            seconds
        });
        let dispatches = plan.dispatches();
        if json {
            let line = json!({
                "kind": "host", "library": "gradclip", "gpu": gpu, "buffers": count, "dispatches": dispatches,
                "encode_seconds": encode * 1e-6, "ready_seconds": ready * 1e-6, "prepare_seconds": again * 1e-6,
            });
            println!("{line}");
        } else {
            println!(
                "{count} buffers, {dispatches} dispatches: encode {encode:.1}, ready {ready:.1}, prepare {again:.1}"
            );
        }
    }
}

struct Host {
    device: wgpu::Device,
    queue: wgpu::Queue,
    repetitions: usize,
}

/// Times in microseconds.
struct Times {
    encode: f64,
    ready: f64,
}

impl Host {
    /// Times a step. Each step is submitted and awaited, so that wgpu's lists do not grow.
    fn step(&self, encode: impl Fn(&mut CommandEncoder)) -> Times {
        let once = |whole: bool| {
            let start = Instant::now();
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let before = Instant::now();
            encode(&mut encoder);
            let encoded = before.elapsed().as_secs_f64();
            let commands = encoder.finish();
            let ready = start.elapsed().as_secs_f64();
            self.queue.submit([commands]);
            self.device.poll(PollType::wait_indefinitely()).expect("the device finishes");
            if whole { ready } else { encoded }
        };
        Times { encode: self.median(|| once(false)), ready: self.median(|| once(true)) }
    }

    fn median(&self, mut seconds: impl FnMut() -> f64) -> f64 {
        seconds(); // A warm-up.
        let mut all: Vec<f64> = (0..self.repetitions).map(|_| seconds() * 1e6).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }
}
