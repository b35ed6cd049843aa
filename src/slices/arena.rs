//! The way of host slices through a GPU: into a few large buffers, clipped there, and back.

use std::ops::Range;
use std::time::Instant;

use futures_intrusive::channel::shared::oneshot_channel;

use super::Timings;
use crate::gpu::device::open;
use crate::gpu::layout::LARGEST_TILE;
use crate::gpu::scope::{guarded, now_or_never};
use crate::{Clip, ClipRecord, Clipper, DType, Error, Gradient, ReadBack};

/// The largest buffer to ask for; many drivers do not like larger ones.
const ARENA_BYTES: u64 = 1 << 30;

/// How much is copied at once: what is in flight takes host memory a second time.
const CHUNK_BYTES: u64 = 1 << 26;

/// Where a slice begins in its arena, so that its vectors are aligned.
const ALIGNMENT: u64 = 16;

/// An open adapter.
#[derive(Debug)]
pub(super) struct Gpu {
    info: wgpu::AdapterInfo,
    queue: wgpu::Queue,
    clipper: Clipper,
}

/// A part of a host slice and where it lies on the device.
#[derive(Debug)]
struct Part {
    slice: usize,
    range: Range<usize>,
    arena: usize,
    /// In bytes.
    offset: u64,
}

impl Gpu {
    pub(super) async fn open(adapter: &wgpu::Adapter) -> Result<Self, Error> {
        let (device, queue) = open(adapter).await?;
        Ok(Self { info: adapter.get_info(), queue, clipper: Clipper::new(&device)? })
    }

    pub(super) fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    fn device(&self) -> &wgpu::Device {
        self.clipper.device()
    }

    pub(super) fn clip(
        &self,
        gradients: &mut [&mut [f32]],
        clip: Clip,
    ) -> Result<(Option<ClipRecord>, Timings), Error> {
        let start = Instant::now();
        let lens: Vec<usize> = gradients.iter().map(|gradient| gradient.len()).collect();
        let (parts, sizes) = place(&lens, ARENA_BYTES.min(self.device().limits().max_buffer_size));
        let arenas = self.allocate(&sizes)?;
        let on_device: Vec<_> = parts.iter().map(|part| part.on(&arenas)).collect();
        let plan = self.clipper.prepare(&on_device, clip)?;
        self.upload(gradients, &parts, &arenas)?;
        let upload = start.elapsed();

        let start = Instant::now();
        let mut encoder = self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.encode(&mut encoder);
        let ticket = plan.record_buffer().map(|_| plan.read_back(&mut encoder));
        self.queue.submit([encoder.finish()]);
        self.wait();
        let record = ticket.map(ReadBack::wait).transpose()?;
        let clip = start.elapsed();

        let start = Instant::now();
        if record.is_none_or(|record| record.clipped()) {
            self.download(gradients, &parts, &arenas)?;
        }
        Ok((record, Timings { upload, clip, download: start.elapsed() }))
    }

    fn allocate(&self, sizes: &[u64]) -> Result<Vec<wgpu::Buffer>, Error> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        guarded(self.device(), "the gradients", sizes.iter().sum(), || {
            let buffer = |&size| {
                let label = Some("gradclip.arena");
                self.device().create_buffer(&wgpu::BufferDescriptor {
                    label,
                    size,
                    usage,
                    mapped_at_creation: false,
                })
            };
            sizes.iter().map(buffer).collect()
        })
    }

    fn upload(&self, gradients: &[&mut [f32]], parts: &[Part], arenas: &[wgpu::Buffer]) -> Result<(), Error> {
        guarded(self.device(), "the upload of the gradients", CHUNK_BYTES, || {
            let mut in_flight = 0;
            for part in parts {
                let bytes: &[u8] = bytemuck::cast_slice(&gradients[part.slice][part.range.clone()]);
                let mut offset = part.offset;
                for chunk in bytes.chunks(as_index(CHUNK_BYTES)) {
                    self.queue.write_buffer(&arenas[part.arena], offset, chunk);
                    offset += chunk.len() as u64;
                    in_flight += chunk.len() as u64;
                    if in_flight >= CHUNK_BYTES {
                        self.queue.submit([]);
                        self.wait();
                        in_flight = 0;
                    }
                }
            }
            self.queue.submit([]);
            self.wait();
        })
    }

    /// Copies the arenas back, chunk by chunk, and each chunk to the slices whose parts lie in it.
    fn download(
        &self,
        gradients: &mut [&mut [f32]],
        parts: &[Part],
        arenas: &[wgpu::Buffer],
    ) -> Result<(), Error> {
        let largest = arenas.iter().map(wgpu::Buffer::size).max().unwrap_or(0).min(CHUNK_BYTES);
        let staging = guarded(self.device(), "the way back of the gradients", largest, || {
            self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("gradclip.download"),
                size: largest,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?;
        for (index, arena) in arenas.iter().enumerate() {
            for from in (0..arena.size()).step_by(as_index(CHUNK_BYTES)) {
                let chunk = from..arena.size().min(from + CHUNK_BYTES);
                let in_arena = parts.iter().filter(|part| part.arena == index);
                self.read(arena, chunk.clone(), &staging, |bytes| {
                    in_arena.for_each(|part| part.take(&chunk, bytes, gradients));
                })?;
            }
        }
        Ok(())
    }

    fn read(
        &self,
        arena: &wgpu::Buffer,
        chunk: Range<u64>,
        staging: &wgpu::Buffer,
        take: impl FnOnce(&[u8]),
    ) -> Result<(), Error> {
        let size = chunk.end - chunk.start;
        let (sender, receiver) = oneshot_channel();
        guarded(self.device(), "the way back of the gradients", size, || {
            let mut encoder =
                self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(arena, chunk.start, staging, 0, size);
            self.queue.submit([encoder.finish()]);
            staging.map_async(wgpu::MapMode::Read, ..size, move |mapped| {
                // The receiver outlives the wait below.
                let _ = sender.send(mapped.is_ok());
            });
        })?;
        self.wait();
        if now_or_never(receiver.receive()).flatten() != Some(true) {
            return Err(Error::DeviceLost);
        }
        take(&staging.get_mapped_range(..size).map_err(|_| Error::DeviceLost)?);
        staging.unmap();
        Ok(())
    }

    fn wait(&self) {
        if let Err(error) = self.device().poll(wgpu::PollType::wait_indefinitely()) {
            log::warn!("waiting for the device: {error}");
        }
    }
}

impl Part {
    fn bytes(&self) -> Range<u64> {
        self.offset..self.offset + 4 * self.range.len() as u64
    }

    fn on<'a>(&self, arenas: &'a [wgpu::Buffer]) -> Gradient<'a> {
        Gradient::new(&arenas[self.arena], DType::F32).bytes(self.bytes())
    }

    /// Copies what it has in a chunk of its arena to its slice.
    fn take(&self, chunk: &Range<u64>, bytes: &[u8], gradients: &mut [&mut [f32]]) {
        let own = self.bytes();
        let (start, end) = (own.start.max(chunk.start), own.end.min(chunk.end));
        if start >= end {
            return;
        }
        let from = as_index(start - chunk.start)..as_index(end - chunk.start);
        let to = as_index(start - own.start)..as_index(end - own.start);
        let slice: &mut [u8] = bytemuck::cast_slice_mut(&mut gradients[self.slice][self.range.clone()]);
        slice[to].copy_from_slice(&bytes[from]);
    }
}

/// Places slices of these lengths into as few arenas as possible, in order, and says how large each is. A slice too
/// large for an arena is cut between two tiles, so that it makes no difference to the sum.
fn place(lens: &[usize], arena_bytes: u64) -> (Vec<Part>, Vec<u64>) {
    let most = as_index(arena_bytes / 4 / LARGEST_TILE * LARGEST_TILE);
    let mut parts = Vec::with_capacity(lens.len());
    let mut sizes: Vec<u64> = Vec::new();
    for (slice, &len) in lens.iter().enumerate() {
        for from in (0..len).step_by(most) {
            let range = from..len.min(from + most);
            let bytes = 4 * range.len() as u64;
            let offset = match sizes.last() {
                Some(size) if size.next_multiple_of(ALIGNMENT) + bytes <= 4 * most as u64 => {
                    size.next_multiple_of(ALIGNMENT)
                }
                _ => {
                    sizes.push(0);
                    0
                }
            };
            let arena = sizes.len() - 1;
            sizes[arena] = offset + bytes;
            parts.push(Part { slice, range, arena, offset });
        }
    }
    (parts, sizes)
}

fn as_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a part of an arena fits into memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `place` promises, for an arena of two tiles.
    fn check(lens: &[usize]) {
        let arena_bytes = 8 * LARGEST_TILE + 12;
        let (parts, sizes) = place(lens, arena_bytes);
        let mut ends = vec![0; sizes.len()];
        let mut taken = vec![0; lens.len()];
        for part in &parts {
            assert!(part.offset >= ends[part.arena], "{part:?} overlaps the one before");
            assert_eq!(part.offset % ALIGNMENT, 0, "{part:?} is aligned");
            assert_eq!(part.range.start, taken[part.slice], "{part:?} follows on the one before");
            assert_eq!(part.range.start % as_index(LARGEST_TILE), 0, "{part:?} is cut between tiles");
            ends[part.arena] = part.bytes().end;
            taken[part.slice] = part.range.end;
        }
        assert_eq!(ends, sizes, "an arena ends with its last part");
        assert_eq!(taken, lens, "every element has a place");
        assert!(sizes.iter().all(|&size| size <= arena_bytes), "{sizes:?} are within the limit");
    }

    #[test]
    fn slices_are_placed_without_loss() {
        let tile = as_index(LARGEST_TILE);
        check(&[]);
        check(&[0, 0]);
        check(&[1, 2, 3, 0, 5]);
        check(&[tile, tile, 1]);
        check(&[2 * tile, 2 * tile + 1, 5 * tile - 1, 7, tile]);
    }
}
