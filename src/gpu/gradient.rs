//! Gradients in wgpu buffers.

use std::ops::Range;

use crate::plan::{self, DeviceBuffer};

/// A gradient in a wgpu buffer. The buffer needs the usage [`STORAGE`](wgpu::BufferUsages::STORAGE).
///
/// ```
/// # let adapter = gradclip::adapters::enumerate().into_iter().next().expect("an adapter: scripts/test installs a software one");
/// # let (device, _) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
/// # let buffer = |size| device.create_buffer(&wgpu::BufferDescriptor {
/// #     label: None, size, usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false,
/// # });
/// # let (weight, embedding, arena) = (buffer(64), buffer(64), buffer(1024));
/// use gradclip::Gradient;
///
/// let gradients = [
///     Gradient::f32(&weight).label("weight"),
///     Gradient::bf16(&embedding).group(1),
///     Gradient::f32(&arena).elements(64..128),
///     Gradient::from(arena.slice(..256)),
/// ];
/// # let _ = gradients;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Gradient<'a> = plan::Gradient<'a, wgpu::Buffer>;

/// The parameter of a gradient in a wgpu buffer.
pub type Parameter<'a> = plan::Parameter<'a, wgpu::Buffer>;

/// The partials of a gradient in a wgpu buffer. The buffer needs the usage [`STORAGE`](wgpu::BufferUsages::STORAGE).
pub type Partials<'a> = plan::Partials<'a, wgpu::Buffer>;

impl DeviceBuffer for wgpu::Buffer {
    fn size(&self) -> u64 {
        self.size()
    }

    fn check_usage(&self) -> Result<(), String> {
        let usage = self.usage();
        if usage.contains(wgpu::BufferUsages::STORAGE) { Ok(()) } else { Err(format!("{usage:?}")) }
    }

    fn is_mapped(&self) -> bool {
        super::error_scope::is_mapped(self)
    }
}

impl<'a> From<&'a wgpu::Buffer> for Gradient<'a> {
    /// Selects a whole buffer of f32 elements.
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        Self::f32(buffer)
    }
}

impl<'a> From<wgpu::BufferSlice<'a>> for Gradient<'a> {
    /// Selects the f32 elements of a slice.
    fn from(slice: wgpu::BufferSlice<'a>) -> Self {
        Self::f32(slice.buffer()).bytes(byte_range(&slice))
    }
}

impl<'a> From<&'a wgpu::Buffer> for Parameter<'a> {
    /// Selects a whole buffer of f32 elements.
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        Self::f32(buffer)
    }
}

impl<'a> From<wgpu::BufferSlice<'a>> for Parameter<'a> {
    /// Selects the f32 elements of a slice.
    fn from(slice: wgpu::BufferSlice<'a>) -> Self {
        Self::f32(slice.buffer()).bytes(byte_range(&slice))
    }
}

fn byte_range(slice: &wgpu::BufferSlice<'_>) -> Range<u64> {
    slice.offset()..slice.offset() + slice.size()
}
