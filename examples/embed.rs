//! Gradient clipping inside a training loop of your own: `cargo run --example embed`
//!
//! Device, buffers, encoder and submission belong to the loop. Clipping is a plan before it and a line in it, both
//! marked `// <-`; the host never waits for a norm. wgpu's default limits are enough.
//!
//! The "model" minimises ½ Σ (parameter - 1)², starting from zeros. Its gradient begins with norm 64, is held to 10,
//! and lets go of the limit when the parameters have come near.

use std::{error::Error, mem, process};

use gradclip::{Clip, Clipper, Gradient};

mod common;
use common::{Kernel, storage};

const STEPS: usize = 20;
const LOOK_EVERY: usize = 2;
const MAX_NORM: f32 = 10.0;

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::init();
    let (device, queue) = pollster::block_on(open()).unwrap_or_else(|error| {
        eprintln!("no GPU to train on: {error}");
        process::exit(1);
    });
    let weight = Layer::new(&device, 62 * 64);
    let arena = Layer::new(&device, 512);
    let layers = [&weight, &arena];

    let gradients = [
        Gradient::f32(&weight.gradients),
        // What lies around these two in the arena is neither measured nor clipped.
        Gradient::f32(&arena.gradients).elements(0..64),
        Gradient::f32(&arena.gradients).elements(100..164),
    ];
    let plan = Clipper::new(&device)?.prepare(&gradients, Clip::by_global_norm(MAX_NORM))?; // <-

    println!("step    norm  coefficient");
    let mut ticket = None;
    for step in 0..STEPS {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for layer in layers {
            layer.backward.encode(&mut encoder);
        }
        plan.encode(&mut encoder); // <-
        for layer in layers {
            layer.descend.encode(&mut encoder);
        }

        // Looking is optional, and now and then is enough.
        let look = (step % LOOK_EVERY == 0).then(|| (step, plan.read_back(&mut encoder)));
        queue.submit([encoder.finish()]);

        // The last look has had a step's time to arrive; if it has not, this waits for it and not for what came after.
        if let Some((step, ticket)) = mem::replace(&mut ticket, look) {
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

/// Some parameters with their gradients, and what happens to them in a step.
struct Layer {
    gradients: wgpu::Buffer,
    backward: Kernel,
    descend: Kernel,
}

impl Layer {
    const BACKWARD: &str = "gradients[id.x] = parameters[id.x] - 1.0;";
    const DESCEND: &str = "parameters[id.x] -= 0.5 * gradients[id.x];";

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
        Self { backward: kernel(Self::BACKWARD), descend: kernel(Self::DESCEND), gradients }
    }
}
