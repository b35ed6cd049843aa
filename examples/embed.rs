//! Adds gradient clipping to an existing training loop: `cargo run --example embed`
//!
//! The loop owns device, buffers, encoder and submission. Clipping adds two lines, marked `// <-`: a plan before the
//! loop, and a call in every step. The host never waits for the norm. wgpu's default limits suffice.
//!
//! The "model" minimises ½ Σ (parameter - 1)² from zeros. Its gradient norm starts at 64 and is clipped to 10 until the
//! parameters are close to 1.

use std::{error::Error, mem, process};

use gradclip::{Clip, Clipper, Gradient};

mod common;
use common::{Kernel, storage};

const STEPS: usize = 20;
const LOG_INTERVAL: usize = 2;
const MAX_NORM: f32 = 10.0;

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::init();
    let (device, queue) = pollster::block_on(open()).unwrap_or_else(|error| {
        eprintln!("no GPU to train on: {error}");
        process::exit(1);
    });
    let weight = Layer::new(&device, 62 * 64);
    let biases = Layer::new(&device, 512);
    let layers = [&weight, &biases];

    let gradients = [
        Gradient::f32(&weight.gradients),
        // Two gradients in one buffer. Elements outside these ranges are neither measured nor clipped.
        Gradient::f32(&biases.gradients).elements(0..64),
        Gradient::f32(&biases.gradients).elements(100..164),
    ];
    let plan = Clipper::new(&device)?.prepare(&gradients, Clip::by_global_norm(MAX_NORM))?; // <-

    println!("step    norm  coefficient");
    let mut pending = None;
    for step in 0..STEPS {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for layer in layers {
            layer.backward.encode(&mut encoder);
        }
        plan.encode(&mut encoder); // <-
        for layer in layers {
            layer.update.encode(&mut encoder);
        }

        // Optional: read the norm back every few steps.
        let ticket = (step % LOG_INTERVAL == 0).then(|| (step, plan.read_back(&mut encoder)));
        queue.submit([encoder.finish()]);

        // Logs one step late, so that the record has usually arrived. `wait` waits only for its own submission.
        if let Some((step, ticket)) = mem::replace(&mut pending, ticket) {
            let record = ticket.wait()?;
            println!("{step:4}  {:6.3}  {:11.4}", record.total_norm, record.clip_coef);
        }
    }
    Ok(())
}

async fn open() -> Result<(wgpu::Device, wgpu::Queue), Box<dyn Error>> {
    let instance = wgpu::Instance::default();
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    println!("training on {}", adapter.get_info().name);
    Ok(adapter.request_device(&wgpu::DeviceDescriptor::default()).await?)
}

/// A gradient buffer, and the kernels that compute it and update the parameters.
struct Layer {
    gradients: wgpu::Buffer,
    backward: Kernel,
    update: Kernel,
}

impl Layer {
    const BACKWARD: &str = "gradients[id.x] = parameters[id.x] - 1.0;";
    const UPDATE: &str = "parameters[id.x] -= 0.5 * gradients[id.x];";

    fn new(device: &wgpu::Device, elements: u16) -> Self {
        let zeros = vec![0.0; elements.into()];
        let parameters = storage(device, "parameters", &zeros);
        let gradients = storage(device, "gradients", &zeros);
        let kernel = |statement| {
            let wgsl = format!(
                "@group(0) @binding(0) var<storage, read_write> parameters: array<f32>;
                @group(0) @binding(1) var<storage, read_write> gradients: array<f32>;

                @compute @workgroup_size(WORKGROUP_SIZE)
                fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
                    if (id.x < arrayLength(&parameters)) {{ {statement} }}
                }}"
            );
            Kernel::new(device, &wgsl, &[&parameters, &gradients], elements.into())
        };
        Self { backward: kernel(Self::BACKWARD), update: kernel(Self::UPDATE), gradients }
    }
}
