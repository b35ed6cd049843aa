//! A device of the page, and gradients on it and in main memory.

use gradclip::half::{bf16, f16};
use gradclip::wgpu;
use gradclip::{Clip, ClipPlan, ClipRecord, Clipper, DType, Error, Gradient, adapters, bytemuck, cpu};

use crate::failed;

/// An open device.
pub(crate) struct Page {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) clipper: Clipper,
}

impl Page {
    pub(crate) async fn open() -> Result<Self, String> {
        let adapter = adapters::enumerate_async().await.into_iter().next().ok_or("there is no adapter")?;
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: Clipper::recommended_limits(&adapter, &wgpu::Limits::default()),
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(failed)?;
        let clipper = Clipper::new(&device).map_err(failed)?;
        Ok(Self { device, queue, clipper })
    }

    /// Creates a buffer that holds `bytes`.
    pub(crate) fn buffer(&self, bytes: &[u8]) -> wgpu::Buffer {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(4).max(4), 0);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: padded.len() as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(&buffer, 0, &padded);
        buffer
    }

    /// Reads the first `len` bytes of a buffer.
    pub(crate) async fn read(&self, buffer: &wgpu::Buffer, len: usize) -> Result<Vec<u8>, String> {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: buffer.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.submit(|encoder| encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size()));
        let mapped = js_sys::Promise::new(&mut |resolve, reject| {
            staging.map_async(wgpu::MapMode::Read, .., move |mapped| {
                let settle = if mapped.is_ok() { resolve } else { reject };
                let _ = settle.call0(&wasm_bindgen::JsValue::NULL);
            });
        });
        wasm_bindgen_futures::JsFuture::from(mapped).await.map_err(failed)?;
        let bytes = staging.get_mapped_range(..).map_err(failed)?[..len].to_vec();
        staging.unmap();
        Ok(bytes)
    }

    /// Records commands and submits them.
    pub(crate) fn submit<T>(&self, record: impl FnOnce(&mut wgpu::CommandEncoder) -> T) -> T {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let recorded = record(&mut encoder);
        self.queue.submit([encoder.finish()]);
        recorded
    }

    /// Submits a step of a plan, and returns its records; none for a clip by value.
    pub(crate) async fn records(&self, plan: &ClipPlan) -> Result<Vec<ClipRecord>, Error> {
        let ticket = self.submit(|encoder| {
            plan.encode(encoder);
            plan.record_buffer().map(|_| plan.read_back_all(encoder))
        });
        match ticket {
            Some(ticket) => ticket.await,
            None => Ok(Vec::new()),
        }
    }

    /// Clips copies of `tensors` on the GPU. Returns the records, and the bytes of the clipped gradients.
    pub(crate) async fn clip(
        &self,
        tensors: &[Tensor],
        clips: &[Clip],
    ) -> Result<(Result<Vec<ClipRecord>, Error>, Vec<Vec<u8>>), String> {
        let buffers: Vec<_> = tensors.iter().map(|tensor| self.buffer(&tensor.bytes())).collect();
        let gradients: Vec<_> =
            tensors.iter().zip(&buffers).map(|(tensor, buffer)| tensor.on_gpu(buffer)).collect();
        let plan = self.clipper.prepare_groups_async(&gradients, clips).await.map_err(failed)?;
        let records = self.records(&plan).await;
        let mut after = Vec::new();
        for (tensor, buffer) in tensors.iter().zip(&buffers) {
            after.push(self.read(buffer, tensor.bytes().len()).await?);
        }
        Ok((records, after))
    }
}

/// The elements of a gradient.
#[derive(Clone, Debug)]
pub(crate) enum Elements {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// A gradient that both paths can clip.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) elements: Elements,
    pub(crate) group: usize,
    pub(crate) measured: bool,
}

impl Tensor {
    pub(crate) fn new(dtype: DType, elements: impl Iterator<Item = f32>) -> Self {
        let elements = match dtype {
            DType::F16 => Elements::F16(elements.map(f16::from_f32).collect()),
            DType::BF16 => Elements::Bf16(elements.map(bf16::from_f32).collect()),
            _ => Elements::F32(elements.collect()),
        };
        Self { elements, group: 0, measured: true }
    }

    pub(crate) fn group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    pub(crate) fn unmeasured(self) -> Self {
        Self { measured: false, ..self }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        match &self.elements {
            Elements::F32(elements) => bytemuck::cast_slice(elements).to_vec(),
            Elements::F16(elements) => bytemuck::cast_slice(elements).to_vec(),
            Elements::Bf16(elements) => bytemuck::cast_slice(elements).to_vec(),
        }
    }

    pub(crate) fn on_gpu<'a>(&self, buffer: &'a wgpu::Buffer) -> Gradient<'a> {
        let (len, dtype) = match &self.elements {
            Elements::F32(elements) => (elements.len(), DType::F32),
            Elements::F16(elements) => (elements.len(), DType::F16),
            Elements::Bf16(elements) => (elements.len(), DType::BF16),
        };
        let gradient = Gradient::new(buffer, dtype).elements(0..len as u64).group(self.group);
        if self.measured { gradient } else { gradient.unmeasured() }
    }

    pub(crate) fn on_cpu(&mut self) -> cpu::Gradient<'_> {
        let gradient = match &mut self.elements {
            Elements::F32(elements) => cpu::Gradient::f32(elements),
            Elements::F16(elements) => cpu::Gradient::f16(elements),
            Elements::Bf16(elements) => cpu::Gradient::bf16(elements),
        };
        let gradient = gradient.group(self.group);
        if self.measured { gradient } else { gradient.unmeasured() }
    }
}

/// Clips copies of `tensors` on the CPU path. Returns the records, and the bytes of the clipped gradients.
pub(crate) fn clip_on_cpu(
    tensors: &[Tensor],
    clips: &[Clip],
) -> (Result<Vec<ClipRecord>, Error>, Vec<Vec<u8>>) {
    let mut tensors = tensors.to_vec();
    let mut gradients: Vec<_> = tensors.iter_mut().map(Tensor::on_cpu).collect();
    let records = cpu::clip_groups(&mut gradients, clips);
    (records, tensors.iter().map(Tensor::bytes).collect())
}

/// Returns small whole numbers, positive, negative and zero. Their sums and sums of squares are exact in f32.
pub(crate) fn whole_numbers(seed: usize, len: usize) -> impl Iterator<Item = f32> {
    (0..len).map(move |index| ((index * 7 + seed * 3 + index / 11) % 9) as f32 - 4.0)
}

/// Returns pseudo-random numbers in [-1, 1).
pub(crate) fn noise(seed: u32, len: usize) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(1);
    (0..len).map(move |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}
