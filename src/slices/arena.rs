//! The way of host slices through a GPU: into a few large buffers, clipped there, and back.

use std::ops::Range;
use std::time::Instant;

use super::Timings;
use crate::clip::Operation;
use crate::cpu::Gradient;
use crate::gpu::device::open;
use crate::gpu::error_scope::CheckedDevice;
use crate::gpu::layout::LARGEST_TILE;
use crate::{Clip, ClipPlan, ClipRecord, Clipper, DType, Error, GradientId, ReadBack, gpu};

/// The largest buffer to ask for; many drivers do not like larger ones.
const ARENA_BYTES: u64 = 1 << 30;

/// How much is copied at once: what is in flight takes host memory a second time.
const CHUNK_BYTES: u64 = 1 << 26;

/// What a slice begins at a multiple of in its arena, so that its vectors are aligned.
const ALIGNMENT: u64 = 16;

/// What wgpu copies, in bytes.
const WORD: usize = 4;

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
    /// Of the slice, in bytes.
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

    fn checked_device(&self) -> &CheckedDevice {
        self.clipper.checked_device()
    }

    pub(super) fn clip(
        &self,
        gradients: &mut [Gradient<'_>],
        clips: &[Clip],
        total_norm: Option<f32>,
    ) -> Result<(Vec<ClipRecord>, Timings), Error> {
        let start = Instant::now();
        let operation = Clip::all_checked(clips)?[0];
        let slices = slices(gradients, &operation);
        let (parts, sizes) = self.place(&slices, &operation)?;
        let in_slices = |error| in_slices(error, &parts);
        let arenas = self.allocate(&sizes)?;
        let on_device = on_device(gradients, &parts, &arenas);
        let plan = self.clipper.prepare_groups(&on_device, clips).map_err(in_slices)?;
        if let Some(total_norm) = total_norm {
            plan.supply_norm(&self.queue, total_norm)?;
        }
        self.upload(&slices, &parts, &arenas)?;
        let upload = start.elapsed();

        let start = Instant::now();
        let records = self.run(&plan).map_err(in_slices)?;
        let records = records_in_slices(records, &parts);
        let clip = start.elapsed();

        let start = Instant::now();
        let is_changed = are_changed(gradients, &operation, &records);
        // The parameters, which come after the gradients, never are.
        let changed: Vec<&Part> =
            parts.iter().filter(|part| is_changed.get(part.slice) == Some(&true)).collect();
        self.download(gradients, &changed, &arenas)?;
        Ok((records, Timings { upload, clip, download: start.elapsed() }))
    }

    /// Places the gradients, if those that must not be cut can do without.
    fn place(
        &self,
        slices: &[(&[u8], DType)],
        operation: &Operation,
    ) -> Result<(Vec<Part>, Vec<u64>), Error> {
        let allowed = self.device().limits().max_buffer_size / ALIGNMENT * ALIGNMENT;
        let whole = is_whole(operation);
        let lens: Vec<_> = slices.iter().map(|(bytes, dtype)| (bytes.len(), *dtype)).collect();
        let needed = lens.iter().map(|(bytes, _)| *bytes as u64).max().unwrap_or(0);
        if whole && needed > allowed {
            let what = "a gradient that this clip must keep in one buffer";
            return Err(Error::DeviceLimit { what, name: "max_buffer_size", needed, allowed });
        }
        Ok(place(&lens, ARENA_BYTES.min(allowed), whole))
    }

    /// Clips what lies on the device.
    fn run(&self, plan: &ClipPlan) -> Result<Vec<ClipRecord>, Error> {
        let mut encoder = self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.encode(&mut encoder);
        let ticket = plan.record_buffer().map(|_| plan.read_back_all(&mut encoder));
        self.checked_device().in_error_scope("the clip of the gradients", 0, || {
            self.queue.submit([encoder.finish()]);
            self.wait()
        })?;
        ticket.map_or(Ok(Vec::new()), ReadBack::wait)
    }

    fn allocate(&self, sizes: &[u64]) -> Result<Vec<wgpu::Buffer>, Error> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        self.checked_device().in_error_scope("the gradients", sizes.iter().sum(), || {
            let buffer = |&size| {
                let label = Some("gradclip.arena");
                self.device().create_buffer(&wgpu::BufferDescriptor {
                    label,
                    size,
                    usage,
                    mapped_at_creation: false,
                })
            };
            Ok(sizes.iter().map(buffer).collect())
        })
    }

    fn upload(
        &self,
        slices: &[(&[u8], DType)],
        parts: &[Part],
        arenas: &[wgpu::Buffer],
    ) -> Result<(), Error> {
        self.checked_device().in_error_scope("the upload of the gradients", CHUNK_BYTES, || {
            let mut in_flight = 0;
            for part in parts {
                let bytes = &slices[part.slice].0[part.range.clone()];
                let mut offset = part.offset;
                for chunk in bytes.chunks(as_index(CHUNK_BYTES)) {
                    self.write(&arenas[part.arena], offset, chunk);
                    offset += chunk.len() as u64;
                    in_flight += chunk.len() as u64;
                    if in_flight >= CHUNK_BYTES {
                        self.queue.submit([]);
                        self.wait()?;
                        in_flight = 0;
                    }
                }
            }
            self.queue.submit([]);
            self.wait()
        })
    }

    /// Writes words; a half of one at the end is filled up, for which the alignment of the parts leaves room.
    fn write(&self, arena: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<WORD>();
        self.queue.write_buffer(arena, offset, words.as_flattened());
        if !rest.is_empty() {
            let mut word = [0; WORD];
            word[..rest.len()].copy_from_slice(rest);
            self.queue.write_buffer(arena, offset + (bytes.len() - rest.len()) as u64, &word);
        }
    }

    /// Copies the arenas back, chunk by chunk, and each chunk to the slices whose parts lie in it. Chunks in which
    /// nothing has changed stay where they are.
    fn download(
        &self,
        gradients: &mut [Gradient<'_>],
        changed: &[&Part],
        arenas: &[wgpu::Buffer],
    ) -> Result<(), Error> {
        if changed.is_empty() {
            return Ok(());
        }
        let largest = arenas.iter().map(wgpu::Buffer::size).max().unwrap_or(0).min(CHUNK_BYTES);
        let staging = self.staging(largest)?;
        for (index, arena) in arenas.iter().enumerate() {
            for from in (0..arena.size()).step_by(as_index(CHUNK_BYTES)) {
                let chunk = from..arena.size().min(from + CHUNK_BYTES);
                let mut shown = changed.iter().filter(|part| part.shows_in(index, &chunk)).peekable();
                if shown.peek().is_some() {
                    self.read(arena, chunk.clone(), &staging, |bytes| {
                        shown.for_each(|part| part.take(&chunk, bytes, &mut gradients[part.slice]));
                    })?;
                }
            }
        }
        Ok(())
    }

    fn staging(&self, size: u64) -> Result<wgpu::Buffer, Error> {
        self.checked_device().in_error_scope("the download of the gradients", size, || {
            Ok(self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("gradclip.download"),
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }))
        })
    }

    fn read(
        &self,
        arena: &wgpu::Buffer,
        chunk: Range<u64>,
        staging: &wgpu::Buffer,
        take: impl FnOnce(&[u8]),
    ) -> Result<(), Error> {
        let size = chunk.end - chunk.start;
        self.checked_device().in_error_scope("the download of the gradients", size, || {
            let mut encoder =
                self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(arena, chunk.start, staging, 0, size);
            self.queue.submit([encoder.finish()]);
            // Its callback may come late, from another thread that polls; the buffer is mapped nonetheless.
            staging.map_async(wgpu::MapMode::Read, ..size, |_| ());
            self.wait()
        })?;
        take(&staging.get_mapped_range(..size).map_err(|_| Error::DeviceLost)?);
        staging.unmap();
        Ok(())
    }

    /// Waits for all that has been submitted.
    fn wait(&self) -> Result<(), Error> {
        self.checked_device().poll(wgpu::PollType::wait_indefinitely()).map(|_finished| ())
    }
}

impl Part {
    fn bytes(&self) -> Range<u64> {
        self.offset..self.offset + self.range.len() as u64
    }

    fn shows_in(&self, arena: usize, chunk: &Range<u64>) -> bool {
        let own = self.bytes();
        self.arena == arena && own.start.max(chunk.start) < own.end.min(chunk.end)
    }

    /// Copies what it has in a chunk of its arena to its slice.
    fn take(&self, chunk: &Range<u64>, bytes: &[u8], gradient: &mut Gradient<'_>) {
        let own = self.bytes();
        let (start, end) = (own.start.max(chunk.start), own.end.min(chunk.end));
        let from = as_index(start - chunk.start)..as_index(end - chunk.start);
        let to = as_index(start - own.start)..as_index(end - own.start);
        gradient.bytes_mut()[self.range.clone()][to].copy_from_slice(&bytes[from]);
    }
}

/// What is to be uploaded: the gradients, and after them their parameters if those are needed.
fn slices<'a>(gradients: &'a [Gradient<'_>], operation: &Operation) -> Vec<(&'a [u8], DType)> {
    let own = gradients.iter().map(|gradient| (gradient.bytes(), gradient.dtype()));
    // One that has none has an empty one here, so that every index is right.
    let none = (&[][..], DType::F32);
    let parameters = gradients.iter().map(|gradient| gradient.parameter_bytes().unwrap_or(none));
    own.chain(parameters.filter(|_| operation.is_relative())).collect()
}

/// The gradients as they lie on the device.
fn on_device<'a>(
    gradients: &[Gradient<'a>],
    parts: &[Part],
    arenas: &'a [wgpu::Buffer],
) -> Vec<gpu::Gradient<'a>> {
    let own = parts.iter().filter(|part| part.slice < gradients.len());
    let gradient = |part: &Part| {
        let gradient = &gradients[part.slice];
        let on_device = gpu::Gradient::new(&arenas[part.arena], gradient.dtype()).bytes(part.bytes());
        // What has rows or a parameter is in one part, and so are all others then.
        let rows = if part.range.len() == gradient.bytes().len() { gradient.rows as u64 } else { 1 };
        let on_device = on_device.group(gradient.group).rows(rows);
        let on_device = gradient.label.map_or(on_device.clone(), |label| on_device.label(label));
        let on_device = if gradient.measured { on_device } else { on_device.unmeasured() };
        let on_device = if gradient.scaled { on_device } else { on_device.unscaled() };
        match (gradient.parameter_bytes(), parts.get(gradients.len() + part.slice)) {
            (Some((_, dtype)), Some(of)) if of.slice == gradients.len() + part.slice => {
                let parameter = gpu::Parameter::new(&arenas[of.arena], dtype).bytes(of.bytes());
                on_device.parameter(parameter)
            }
            _ => on_device,
        }
    };
    own.map(gradient).collect()
}

fn has_own_norms(operation: &Operation) -> bool {
    matches!(operation, Operation::Norm(norm) if !norm.scope.is_together())
}

/// Whether a part of a gradient would not be clipped as the whole: where each has a norm of its own, or counts as one.
fn is_whole(operation: &Operation) -> bool {
    let counts = matches!(operation, Operation::Norm(norm) if norm.norm_type.p() == 0.0);
    counts || has_own_norms(operation)
}

/// Of each gradient, whether the clip has written to it.
fn are_changed(gradients: &[Gradient<'_>], operation: &Operation, records: &[ClipRecord]) -> Vec<bool> {
    let mut first = 0;
    let mut is_changed = |gradient: &Gradient<'_>| {
        let own = if has_own_norms(operation) {
            first += gradient.rows;
            first - gradient.rows..first
        } else {
            gradient.group..gradient.group + 1
        };
        gradient.scaled
            && match operation {
                Operation::Norm(norm) => {
                    !norm.coefficient_only && records[own].iter().any(|record| record.factor != 1.0)
                }
                Operation::Clamp { .. } => true,
            }
    };
    gradients.iter().map(&mut is_changed).collect()
}

/// Records about parts, as those of the slices that they belong to.
fn records_in_slices(records: Vec<ClipRecord>, parts: &[Part]) -> Vec<ClipRecord> {
    records.into_iter().map(|record| record.reindexed(|part| parts[part].slice)).collect()
}

/// An error about parts, as one about the slices that they belong to.
fn in_slices(error: Error, parts: &[Part]) -> Error {
    let slice = |part: GradientId| GradientId { index: parts[part.index].slice, ..part };
    match error {
        Error::GroupWithoutClip { gradient, given, groups } => {
            Error::GroupWithoutClip { gradient: slice(gradient), given, groups }
        }
        Error::Rows { gradient, rows, elements } => Error::Rows { gradient: slice(gradient), rows, elements },
        Error::TooManyEmptyRows { gradient, rows, most } => {
            Error::TooManyEmptyRows { gradient: slice(gradient), rows, most }
        }
        Error::NonFinite { gradient, total_norm, record } => {
            Error::NonFinite { gradient: gradient.map(slice), total_norm, record }
        }
        other => other,
    }
}

/// Places slices of so many bytes into as few arenas as possible, in order, and says how large each is. A slice too
/// large for an arena is cut between two tiles, so that it makes no difference to the sum; if it must stay whole, it has a
/// larger arena for itself.
fn place(slices: &[(usize, DType)], arena_bytes: u64, whole: bool) -> (Vec<Part>, Vec<u64>) {
    let mut parts = Vec::with_capacity(slices.len());
    let mut sizes: Vec<u64> = Vec::new();
    for (slice, &(len, dtype)) in slices.iter().enumerate() {
        let tile = dtype.size() * LARGEST_TILE;
        let most = if whole { len.max(1) } else { as_index(arena_bytes / tile * tile) };
        // An empty one has an empty part, so that it has a record.
        for from in (0..len.max(1)).step_by(most) {
            let range = from..len.min(from + most);
            let bytes = (range.len() as u64).next_multiple_of(ALIGNMENT);
            let offset = match sizes.last() {
                Some(&size) if size + bytes <= arena_bytes => size,
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
    // Nothing at all is nowhere, but a buffer must be somewhere.
    (parts, sizes.into_iter().map(|size| size.max(ALIGNMENT)).collect())
}

fn as_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a part of an arena fits into memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `place` promises, for arenas of two tiles of f32.
    fn check(lens: &[usize], dtypes: &[DType], whole: bool) {
        let arena_bytes = 8 * LARGEST_TILE;
        let slices: Vec<_> = lens
            .iter()
            .zip(dtypes.iter().cycle())
            .map(|(len, dtype)| (len * as_index(dtype.size()), *dtype))
            .collect();
        let (parts, sizes) = place(&slices, arena_bytes, whole);
        let mut ends = vec![0; sizes.len()];
        let mut taken = vec![None; lens.len()];
        for part in &parts {
            let dtype = slices[part.slice].1;
            assert!(part.offset >= ends[part.arena], "{part:?} overlaps the one before");
            assert_eq!(part.offset % ALIGNMENT, 0, "{part:?} is aligned");
            assert_eq!(
                part.range.start,
                taken[part.slice].unwrap_or(0),
                "{part:?} follows on the one before"
            );
            let tile = as_index(dtype.size() * LARGEST_TILE);
            assert_eq!(part.range.start % tile, 0, "{part:?} is cut between tiles");
            assert!(!whole || part.range.len() == slices[part.slice].0, "{part:?} is whole");
            ends[part.arena] = part.bytes().end.next_multiple_of(ALIGNMENT);
            taken[part.slice] = Some(part.range.end);
        }
        let whole_slices: Vec<_> = slices.iter().map(|(bytes, _)| Some(*bytes)).collect();
        assert_eq!(taken, whole_slices, "every element has a place, and nothing has one, too");
        for (arena, (&size, end)) in sizes.iter().zip(ends).enumerate() {
            assert_eq!(size, end.max(ALIGNMENT), "an arena ends with its last part");
            let shared = parts.iter().filter(|part| part.arena == arena && !part.range.is_empty()).count();
            assert!(
                size <= arena_bytes || whole && shared == 1,
                "arena {arena} of {size} bytes is too large"
            );
        }
    }

    #[test]
    fn slices_are_placed_without_loss() {
        let tile = as_index(LARGEST_TILE);
        let sets: [&[usize]; 5] = [
            &[],
            &[0, 0],
            &[1, 2, 3, 0, 5],
            &[tile, tile, 1],
            &[2 * tile, 2 * tile + 1, 5 * tile - 1, 7, tile, 0, 9 * tile],
        ];
        for lens in sets {
            for dtypes in [&[DType::F32][..], &[DType::F16], &[DType::BF16, DType::F32]] {
                check(lens, dtypes, false);
                check(lens, dtypes, true);
            }
        }
    }

    /// An adapter that allows no buffer above so many bytes, so that few elements are many.
    fn small_gpu(max_buffer_size: u64) -> Gpu {
        let adapter = crate::adapters().remove(0);
        let required_limits = wgpu::Limits {
            max_buffer_size,
            max_storage_buffer_binding_size: max_buffer_size,
            ..wgpu::Limits::default()
        };
        let descriptor = wgpu::DeviceDescriptor { required_limits, ..wgpu::DeviceDescriptor::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        Gpu { info: adapter.get_info(), queue, clipper: Clipper::new(&device).unwrap() }
    }

    #[test]
    fn what_is_cut_is_clipped_as_one() {
        let gpu = small_gpu(4 * LARGEST_TILE + 256);
        let make = || {
            let numbers = (0_u16..).map(|i| f32::from(i % 1001) - 500.0);
            let body: Vec<f32> = numbers.clone().take(60_000).cycle().take(200_001).collect();
            let head: Vec<half::bf16> = numbers.map(half::bf16::from_f32).take(7).collect();
            (body, head)
        };
        let clip = Clip::by_global_norm(1.0).loss_scale(4.0);
        let ((mut body, mut head), (mut expected, mut head_expected)) = (make(), make());
        let outcome = gpu.clip(&mut [Gradient::f32(&mut body), Gradient::bf16(&mut head)], &[clip], None);
        let mut gradients = [Gradient::f32(&mut expected), Gradient::bf16(&mut head_expected)];
        let record = crate::cpu::clip_groups(&mut gradients, &[clip]).unwrap()[0];
        let found = outcome.unwrap().0[0];
        assert!((found.total_norm - record.total_norm).abs() <= 1e-6 * record.total_norm, "{found:?}");
        let mut pairs = body.iter().zip(&expected);
        assert!(pairs.all(|(x, y)| (x - y).abs() <= 1e-6 * y.abs()), "the parts are in their places");
        assert_eq!(head, head_expected);

        let (mut body, mut whole) = (make().0, make().0);
        let supplied = Clip::by_supplied_norm(1.0);
        let records = gpu.clip(&mut [Gradient::f32(&mut body)], &[supplied], Some(8.0)).unwrap().0;
        let record = crate::cpu::clip_with_norm(&mut [Gradient::f32(&mut whole)], supplied, 8.0).unwrap();
        assert_eq!((records, &body), (vec![record], &whole));

        // In the third part of the second gradient.
        expected[150_000] = f32::NAN;
        let mut gradients = [Gradient::bf16(&mut head), Gradient::f32(&mut expected)];
        let (records, _) = gpu.clip(&mut gradients, &[clip.coefficient_only()], None).unwrap();
        assert_eq!(records[0].first_non_finite(), Some(1));
        let error = gpu.clip(&mut gradients, &[clip.non_finite(crate::NonFinite::Error)], None);
        assert!(
            matches!(error, Err(Error::NonFinite { gradient: Some(GradientId { index: 1, .. }), .. })),
            "{error:?}"
        );
        let error =
            gpu.clip(&mut [Gradient::f32(&mut body), Gradient::f32(&mut expected).group(1)], &[clip], None);
        assert!(
            matches!(
                error,
                Err(Error::GroupWithoutClip { gradient: GradientId { index: 1, .. }, given: 1, groups: 1 })
            ),
            "{error:?}"
        );
    }

    #[test]
    fn what_must_not_be_cut_is_refused() {
        let gpu = small_gpu(4 * LARGEST_TILE + 256);
        let (mut large, mut small) = (vec![1.0; as_index(LARGEST_TILE) + 100], [2.0; 3]);
        let count = Clip::by_global_norm(1.0).norm_type(crate::NormType::P(0.0));
        for clip in [Clip::by_norm(1.0), Clip::by_rms(0.5), count] {
            let mut gradients = [Gradient::f32(&mut small), Gradient::f32(&mut large)];
            let error = gpu.clip(&mut gradients, &[clip], None).unwrap_err();
            assert!(matches!(error, Error::DeviceLimit { name: "max_buffer_size", .. }), "{error}");
            assert!(gpu.clip(&mut gradients[..1], &[clip], None).is_ok());
        }
    }
}
