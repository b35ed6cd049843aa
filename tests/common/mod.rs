//! What both test binaries stand on: devices, gradients laid out in buffers among other things, and a clip of them.

use std::ops::Range;
use std::sync::mpsc;

use gradclip::wgpu::{self, util::DeviceExt as _};
use gradclip::{Clip, ClipRecord, Clipper, DType, Error, Gradient, cpu};

/// What lies beside the gradients: so large that a norm which takes it in is wrong, and neither a factor nor a bound
/// leaves it as it is.
pub(crate) const GUARD: f32 = -7.7e25;

/// The adapters of this machine, best first.
pub(crate) fn adapters() -> Vec<wgpu::Adapter> {
    let adapters = gradclip::adapters();
    assert!(
        !adapters.is_empty(),
        "no adapter, so the GPU path cannot be tested; a software one will do: apt-get install \
         mesa-vulkan-drivers libvulkan1, or let scripts/test do it"
    );
    adapters
}

/// The least that a [`Clipper`] accepts: two slots, small windows, short grids.
pub(crate) fn least_limits() -> wgpu::Limits {
    wgpu::Limits {
        max_storage_buffers_per_shader_stage: 4,
        max_bindings_per_bind_group: 5,
        max_storage_buffer_binding_size: 4 * 65536 + 256,
        max_compute_workgroups_per_dimension: 256,
        ..wgpu::Limits::default()
    }
}

/// Numbers in [-1, 1), the same for the same seed.
pub(crate) fn noise(seed: u32, len: usize) -> Vec<f32> {
    let number = |index: u64| {
        let mut hash = (u64::from(seed) << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        ((hash ^ hash >> 32) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len as u64).map(number).collect()
}

/// The bits of every element: what to compare where NaN must equal itself, and -0.0 not 0.0.
pub(crate) fn bits(gradients: &[Vec<f32>]) -> Vec<Vec<u32>> {
    gradients.iter().map(|gradient| gradient.iter().map(|g| g.to_bits()).collect()).collect()
}

pub(crate) fn slices(gradients: &[Vec<f32>]) -> Vec<&[f32]> {
    gradients.iter().map(Vec::as_slice).collect()
}

/// What a clip left behind.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) record: Option<ClipRecord>,
    pub(crate) gradients: Vec<Vec<f32>>,
}

pub(crate) fn clip_on_cpu(gradients: &[Vec<f32>], clip: Clip) -> Result<Outcome, Error> {
    let mut gradients = gradients.to_vec();
    let mut slices: Vec<&mut [f32]> = gradients.iter_mut().map(Vec::as_mut_slice).collect();
    let record = cpu::clip(&mut slices, clip)?;
    Ok(Outcome { record, gradients })
}

/// Where gradients lie.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    /// For each gradient its buffer, and its words there.
    pub(crate) spans: Vec<(usize, Range<usize>)>,
    /// The words of each buffer.
    pub(crate) buffers: Vec<usize>,
}

impl Placement {
    /// Every gradient in a buffer of its own.
    pub(crate) fn separate(lens: &[usize]) -> Self {
        Self { spans: lens.iter().map(|&len| 0..len).enumerate().collect(), buffers: lens.to_vec() }
    }

    /// All in one buffer, each at a multiple of 16 bytes.
    pub(crate) fn arena(lens: &[usize]) -> Self {
        let mut end = 0_usize;
        let mut place = |&len: &usize| {
            let start = end.next_multiple_of(4);
            end = start + len;
            (0, start..end)
        };
        let spans = lens.iter().map(&mut place).collect();
        Self { spans, buffers: vec![end] }
    }

    /// All in one buffer, the last one first, each at an odd word with guard words around it.
    pub(crate) fn packed(lens: &[usize]) -> Self {
        let mut end = 0;
        let mut place = |&len: &usize| {
            let start = (end + 1) | 1;
            end = start + len;
            (0, start..end)
        };
        let mut spans: Vec<_> = lens.iter().rev().map(&mut place).collect();
        spans.reverse();
        Self { spans, buffers: vec![end + 3] }
    }

    fn is_alone(&self, (buffer, words): &(usize, Range<usize>)) -> bool {
        *words == (0..self.buffers[*buffer])
    }
}

/// An open device.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) clipper: Clipper,
}

impl Gpu {
    pub(crate) fn open(adapter: &wgpu::Adapter, limits: wgpu::Limits) -> Self {
        let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
        let clipper = Clipper::new(&device).expect("a device that is good enough");
        Self { device, queue, clipper }
    }

    /// A buffer with these numbers in it.
    pub(crate) fn buffer(&self, contents: &[f32]) -> wgpu::Buffer {
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(contents),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    }

    /// What is in a buffer now.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer) -> Vec<f32> {
        if buffer.size() == 0 {
            return Vec::new();
        }
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: buffer.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.submit(|encoder| encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size()));
        let (mapped, is_mapped) = mpsc::channel();
        staging
            .map_async(wgpu::MapMode::Read, .., move |result| mapped.send(result).expect("somebody waits"));
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is there");
        // Another thread that polls this device may run the callback, and be late.
        is_mapped.recv().expect("a callback").expect("a mapped buffer");
        bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..).expect("a mapped range"))
    }

    /// Records commands and submits them.
    pub(crate) fn submit<T>(&self, record: impl FnOnce(&mut wgpu::CommandEncoder) -> T) -> T {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let recorded = record(&mut encoder);
        self.queue.submit([encoder.finish()]);
        recorded
    }

    /// Uploads gradients to where they are to lie, with guards in every other word.
    pub(crate) fn place(&self, placement: &Placement, gradients: &[Vec<f32>]) -> Placed {
        let mut contents: Vec<_> = placement.buffers.iter().map(|&words| vec![GUARD; words]).collect();
        for ((buffer, words), gradient) in placement.spans.iter().zip(gradients) {
            contents[*buffer][words.clone()].copy_from_slice(gradient);
        }
        let buffers = contents.iter().map(|contents| self.buffer(contents)).collect();
        Placed { placement: placement.clone(), buffers }
    }

    /// Clips gradients that lie like this.
    pub(crate) fn clip(
        &self,
        placement: &Placement,
        gradients: &[Vec<f32>],
        clip: Clip,
    ) -> Result<Outcome, Error> {
        let placed = self.place(placement, gradients);
        let plan = self.clipper.prepare(&placed.gradients(), clip)?;
        let ticket = self.submit(|encoder| {
            plan.encode(encoder);
            plan.record_buffer().map(|_| plan.read_back(encoder))
        });
        let record = ticket.map(gradclip::ReadBack::wait).transpose()?;
        Ok(Outcome { record, gradients: placed.read(self) })
    }
}

/// Gradients in their buffers.
#[derive(Debug)]
pub(crate) struct Placed {
    placement: Placement,
    pub(crate) buffers: Vec<wgpu::Buffer>,
}

impl Placed {
    pub(crate) fn gradients(&self) -> Vec<Gradient<'_>> {
        let gradient = |span: &(usize, Range<usize>)| {
            let whole = Gradient::new(&self.buffers[span.0], DType::F32);
            if self.placement.is_alone(span) {
                return whole;
            }
            whole.elements(span.1.start as u64..span.1.end as u64)
        };
        self.placement.spans.iter().map(gradient).collect()
    }

    /// The gradients as they are now, after a check that every guard is as it was.
    pub(crate) fn read(&self, gpu: &Gpu) -> Vec<Vec<f32>> {
        let mut contents: Vec<_> = self.buffers.iter().map(|buffer| gpu.read(buffer)).collect();
        let take = |(buffer, words): &(usize, Range<usize>)| {
            let gradient = contents[*buffer][words.clone()].to_vec();
            contents[*buffer][words.clone()].fill(GUARD);
            gradient
        };
        let gradients = self.placement.spans.iter().map(take).collect();
        for (buffer, contents) in contents.iter().enumerate() {
            if let Some(word) = contents.iter().position(|guard| guard.to_bits() != GUARD.to_bits()) {
                panic!("word {word} of buffer {buffer} is no gradient, but became {}", contents[word]);
            }
        }
        gradients
    }
}
