//! Clips host slices on a GPU: copies them to a few large buffers (arenas), clips them there, and copies them back.

use std::ops::Range;

use futures_intrusive::channel::shared::oneshot_channel;

use super::Timings;
use super::stopwatch::Stopwatch;
use crate::adapters::open;
use crate::cpu::Gradient;
use crate::kernels::tables::LARGEST_TILE;
use crate::operation::Operation;
use crate::{ClipPlan, ClipRecord, Clipper, DType, Error, GradientId, gpu};

/// The largest arena. Many drivers handle larger buffers badly.
const ARENA_BYTES: u64 = 1 << 30;

/// The most bytes in flight. The host holds a second copy of them.
const CHUNK_BYTES: u64 = 1 << 26;

/// The alignment of each slice in its arena, so that shaders load aligned vectors.
const ALIGNMENT: u64 = 16;

/// The granularity of wgpu's copies, in bytes.
const WORD: usize = 4;

/// An open adapter.
#[derive(Debug)]
pub(super) struct Gpu {
    info: wgpu::AdapterInfo,
    queue: wgpu::Queue,
    clipper: Clipper,
}

/// How a clip waits for the GPU.
#[derive(Clone, Copy, Debug)]
pub(super) enum Waiting {
    /// The future is ready at its first poll, which blocks.
    #[cfg(not(target_arch = "wasm32"))]
    Blocking,
    Async,
}

/// A part of a host slice, and its place on the device.
#[derive(Debug)]
struct Part {
    slice: usize,
    /// The range of the slice, in bytes.
    range: Range<usize>,
    arena: usize,
    /// The offset in the arena, in bytes.
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

    pub(super) async fn clip(
        &self,
        gradients: &mut [Gradient<'_>],
        operations: &[Operation],
        total_norm: Option<f32>,
        waiting: Waiting,
    ) -> Result<(Vec<ClipRecord>, Timings), Error> {
        let mut stopwatch = Stopwatch::start();
        let operation = operations[0];
        let slices = slices(gradients, &operation);
        let (parts, sizes) = self.place(&slices, &operation)?;
        let in_slices = |error| in_slices(error, &parts);
        let arenas = self.allocate(&sizes).await?;
        let plan = {
            let on_device = on_device(gradients, &parts, &arenas);
            self.clipper.prepare_operations(&on_device, operations).await.map_err(in_slices)?
        };
        if let Some(total_norm) = total_norm {
            plan.supply_norm(&self.queue, total_norm)?;
        }
        self.upload(&slices, &parts, &arenas, waiting).await?;
        let upload = stopwatch.lap();

        let records = self.run(&plan, waiting).await.map_err(in_slices)?;
        let records = records_in_slices(records, &parts);
        let clip = stopwatch.lap();

        let is_changed = are_changed(gradients, &operation, &records);
        // The parameters come after the gradients, and never change.
        let changed: Vec<&Part> =
            parts.iter().filter(|part| is_changed.get(part.slice) == Some(&true)).collect();
        self.download(gradients, &changed, &arenas, waiting).await?;
        Ok((records, Timings { upload, clip, download: stopwatch.lap() }))
    }

    /// Assigns places in arenas, unless a gradient that must not be split exceeds the largest buffer.
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

    /// Clips the gradients on the device.
    async fn run(&self, plan: &ClipPlan, waiting: Waiting) -> Result<Vec<ClipRecord>, Error> {
        let submit = || {
            let mut encoder =
                self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            plan.encode(&mut encoder);
            let ticket = plan.record_buffer().map(|_| plan.read_back_all(&mut encoder));
            self.queue.submit([encoder.finish()]);
            Ok(ticket)
        };
        let ticket = self.in_error_scope("the clip of the gradients", 0, submit).await?;
        self.wait(waiting).await?;
        match ticket {
            Some(ticket) => ticket.await,
            None => Ok(Vec::new()),
        }
    }

    async fn allocate(&self, sizes: &[u64]) -> Result<Vec<wgpu::Buffer>, Error> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let allocate = || {
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
        };
        self.in_error_scope("the gradients", sizes.iter().sum(), allocate).await
    }

    async fn upload(
        &self,
        slices: &[(&[u8], DType)],
        parts: &[Part],
        arenas: &[wgpu::Buffer],
        waiting: Waiting,
    ) -> Result<(), Error> {
        let mut chunks = Vec::new();
        for part in parts {
            let mut offset = part.offset;
            for chunk in slices[part.slice].0[part.range.clone()].chunks(as_index(CHUNK_BYTES)) {
                chunks.push((&arenas[part.arena], offset, chunk));
                offset += chunk.len() as u64;
            }
        }
        let mut chunks = &chunks[..];
        while !chunks.is_empty() {
            let mut in_flight = 0;
            let mut fits = |(_, _, chunk): &(_, _, &[u8])| {
                let fits = in_flight < CHUNK_BYTES;
                in_flight += chunk.len() as u64;
                fits
            };
            let end = chunks.iter().position(|chunk| !fits(chunk)).unwrap_or(chunks.len());
            let (next, later) = chunks.split_at(end);
            let write = || {
                for (arena, offset, chunk) in next {
                    self.write(arena, *offset, chunk);
                }
                self.queue.submit([]);
                Ok(())
            };
            self.in_error_scope("the upload of the gradients", CHUNK_BYTES, write).await?;
            self.wait(waiting).await?;
            chunks = later;
        }
        Ok(())
    }

    /// Writes bytes in whole words. A half word at the end is padded; the alignment of the parts leaves room for that.
    fn write(&self, arena: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<WORD>();
        self.queue.write_buffer(arena, offset, words.as_flattened());
        if !rest.is_empty() {
            let mut word = [0; WORD];
            word[..rest.len()].copy_from_slice(rest);
            self.queue.write_buffer(arena, offset + (bytes.len() - rest.len()) as u64, &word);
        }
    }

    /// Copies the arenas back in chunks, and each chunk to the slices whose parts it holds. Skips chunks without changes.
    async fn download(
        &self,
        gradients: &mut [Gradient<'_>],
        changed: &[&Part],
        arenas: &[wgpu::Buffer],
        waiting: Waiting,
    ) -> Result<(), Error> {
        if changed.is_empty() {
            return Ok(());
        }
        let largest = arenas.iter().map(wgpu::Buffer::size).max().unwrap_or(0).min(CHUNK_BYTES);
        let staging = self.staging(largest).await?;
        for (index, arena) in arenas.iter().enumerate() {
            for from in (0..arena.size()).step_by(as_index(CHUNK_BYTES)) {
                let chunk = from..arena.size().min(from + CHUNK_BYTES);
                if changed.iter().any(|part| part.overlaps(index, &chunk)) {
                    let size = chunk.end - chunk.start;
                    self.read(arena, chunk.clone(), &staging, waiting).await?;
                    let bytes = staging.get_mapped_range(..size).map_err(|_| Error::DeviceLost)?;
                    for part in changed.iter().filter(|part| part.overlaps(index, &chunk)) {
                        part.take(&chunk, &bytes, &mut gradients[part.slice]);
                    }
                    drop(bytes);
                    staging.unmap();
                }
            }
        }
        Ok(())
    }

    async fn staging(&self, size: u64) -> Result<wgpu::Buffer, Error> {
        let create = || {
            Ok(self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("gradclip.download"),
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }))
        };
        self.in_error_scope("the download of the gradients", size, create).await
    }

    /// Copies a chunk of an arena to the staging buffer, and maps it.
    async fn read(
        &self,
        arena: &wgpu::Buffer,
        chunk: Range<u64>,
        staging: &wgpu::Buffer,
        waiting: Waiting,
    ) -> Result<(), Error> {
        let size = chunk.end - chunk.start;
        let (sender, mapped) = oneshot_channel();
        let copy = || {
            let mut encoder =
                self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(arena, chunk.start, staging, 0, size);
            self.queue.submit([encoder.finish()]);
            staging.map_async(wgpu::MapMode::Read, ..size, move |mapped| {
                let _ = sender.send(mapped.is_ok());
            });
            Ok(())
        };
        self.in_error_scope("the download of the gradients", size, copy).await?;
        self.wait(waiting).await?;
        // On native targets the buffer is mapped after this wait in any case. The callback may run late, in another thread that
        // polls.
        if cfg!(target_arch = "wasm32") {
            mapped.receive().await;
        }
        Ok(())
    }

    async fn in_error_scope<T>(
        &self,
        what: &'static str,
        bytes: u64,
        create: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.clipper.checked_device().in_error_scope_async(what, bytes, create).await
    }

    /// Waits for all submitted work.
    async fn wait(&self, waiting: Waiting) -> Result<(), Error> {
        let checked_device = self.clipper.checked_device();
        match waiting {
            #[cfg(not(target_arch = "wasm32"))]
            Waiting::Blocking => checked_device.poll(wgpu::PollType::wait_indefinitely()).map(|_finished| ()),
            Waiting::Async => checked_device.finished_async(&self.queue).await,
        }
    }
}

impl Part {
    fn bytes(&self) -> Range<u64> {
        self.offset..self.offset + self.range.len() as u64
    }

    fn overlaps(&self, arena: usize, chunk: &Range<u64>) -> bool {
        let bytes = self.bytes();
        self.arena == arena && bytes.start.max(chunk.start) < bytes.end.min(chunk.end)
    }

    /// Copies the overlap with a chunk of the arena to the slice.
    fn take(&self, chunk: &Range<u64>, bytes: &[u8], gradient: &mut Gradient<'_>) {
        let part = self.bytes();
        let (start, end) = (part.start.max(chunk.start), part.end.min(chunk.end));
        let from = as_index(start - chunk.start)..as_index(end - chunk.start);
        let to = as_index(start - part.start)..as_index(end - part.start);
        gradient.bytes_mut()[self.range.clone()][to].copy_from_slice(&bytes[from]);
    }
}

/// Returns the slices to upload: the gradients, then their parameters if the operation needs them.
fn slices<'a>(gradients: &'a [Gradient<'_>], operation: &Operation) -> Vec<(&'a [u8], DType)> {
    let elements = gradients.iter().map(|gradient| (gradient.bytes(), gradient.dtype()));
    // A gradient without a parameter has an empty slice here, so that indices match.
    let none = (&[][..], DType::F32);
    let parameters = gradients.iter().map(|gradient| gradient.parameter_bytes().unwrap_or(none));
    elements.chain(parameters.filter(|_| operation.needs_parameters())).collect()
}

/// Returns the gradients on the device.
fn on_device<'a>(
    gradients: &[Gradient<'a>],
    parts: &[Part],
    arenas: &'a [wgpu::Buffer],
) -> Vec<gpu::Gradient<'a>> {
    let gradient_parts = parts.iter().filter(|part| part.slice < gradients.len());
    let gradient = |part: &Part| {
        let gradient = &gradients[part.slice];
        let on_device = gpu::Gradient::new(&arenas[part.arena], gradient.dtype()).bytes(part.bytes());
        // If one gradient has rows or a parameter, no gradient is split.
        let is_whole = part.range.len() == gradient.bytes().len();
        let [rows, columns] = if is_whole { [gradient.rows, gradient.columns] } else { [1, 1] };
        let on_device = on_device.group(gradient.group).rows(rows as u64).columns(columns as u64);
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
    gradient_parts.map(gradient).collect()
}

fn has_own_norms(operation: &Operation) -> bool {
    matches!(operation, Operation::Norm(norm) if !norm.scope.is_together())
}

/// Returns whether gradients must not be split: each has its own norm, or counts as one in the 0-norm.
fn is_whole(operation: &Operation) -> bool {
    let counts = matches!(operation, Operation::Norm(norm) if norm.norm_type.p() == 0.0);
    counts || has_own_norms(operation)
}

/// Returns for each gradient whether the clip has written to it.
fn are_changed(gradients: &[Gradient<'_>], operation: &Operation, records: &[ClipRecord]) -> Vec<bool> {
    let mut first = 0;
    let mut is_changed = |gradient: &Gradient<'_>| {
        let its_records = if has_own_norms(operation) {
            first += gradient.units();
            first - gradient.units()..first
        } else {
            gradient.group..gradient.group + 1
        };
        gradient.scaled
            && match operation {
                Operation::Norm(norm) => {
                    !norm.coefficient_only && records[its_records].iter().any(|record| record.factor != 1.0)
                }
                Operation::Clamp { .. } => true,
            }
    };
    gradients.iter().map(&mut is_changed).collect()
}

/// Maps the gradient indices of records from parts to slices.
fn records_in_slices(records: Vec<ClipRecord>, parts: &[Part]) -> Vec<ClipRecord> {
    records.into_iter().map(|record| record.reindexed(|part| parts[part].slice)).collect()
}

/// Maps the gradient indices of an error from parts to slices.
fn in_slices(error: Error, parts: &[Part]) -> Error {
    let slice = |part: GradientId| GradientId { index: parts[part.index].slice, ..part };
    match error {
        Error::GroupWithoutClip { gradient, given, groups } => {
            Error::GroupWithoutClip { gradient: slice(gradient), given, groups }
        }
        Error::Rows { gradient, rows, elements } => Error::Rows { gradient: slice(gradient), rows, elements },
        Error::Columns { gradient, columns, elements } => {
            Error::Columns { gradient: slice(gradient), columns, elements }
        }
        Error::RowsAndColumns { gradient, rows, columns } => {
            Error::RowsAndColumns { gradient: slice(gradient), rows, columns }
        }
        Error::TooManyEmptyRows { gradient, rows, most } => {
            Error::TooManyEmptyRows { gradient: slice(gradient), rows, most }
        }
        Error::NonFinite { gradient, total_norm, record } => {
            Error::NonFinite { gradient: gradient.map(slice), total_norm, record }
        }
        other => other,
    }
}

/// Assigns slices to as few arenas as possible, in order. Returns the parts and the size of each arena in bytes.
///
/// A slice that exceeds an arena is split between two tiles, so that the sum does not change. If it must stay whole, it gets a
/// larger arena of its own.
fn place(slices: &[(usize, DType)], arena_bytes: u64, whole: bool) -> (Vec<Part>, Vec<u64>) {
    let mut parts = Vec::with_capacity(slices.len());
    let mut sizes: Vec<u64> = Vec::new();
    for (slice, &(len, dtype)) in slices.iter().enumerate() {
        let tile = dtype.size() * LARGEST_TILE;
        let most = if whole { len.max(1) } else { as_index(arena_bytes / tile * tile) };
        // An empty slice has an empty part, so that it has a record.
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
    // A buffer must not be empty.
    (parts, sizes.into_iter().map(|size| size.max(ALIGNMENT)).collect())
}

fn as_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a part of an arena fits into memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Clip;

    fn checked(clip: Clip) -> [Operation; 1] {
        [clip.checked().unwrap()]
    }

    /// Checks the guarantees of `place`, for arenas of two tiles of f32.
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

    /// Opens an adapter with a small `max_buffer_size`, so that few elements exceed it.
    fn small_gpu(max_buffer_size: u64) -> Gpu {
        let adapter = crate::adapters::enumerate().remove(0);
        let required_limits = wgpu::Limits {
            max_buffer_size,
            max_storage_buffer_binding_size: max_buffer_size,
            ..wgpu::Limits::default()
        };
        let descriptor = wgpu::DeviceDescriptor { required_limits, ..wgpu::DeviceDescriptor::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        Gpu { info: adapter.get_info(), queue, clipper: Clipper::new(&device).unwrap() }
    }

    fn clip_on(
        gpu: &Gpu,
        gradients: &mut [Gradient<'_>],
        operations: &[Operation],
        total_norm: Option<f32>,
    ) -> Result<(Vec<ClipRecord>, Timings), Error> {
        pollster::block_on(gpu.clip(gradients, operations, total_norm, Waiting::Blocking))
    }

    #[test]
    fn a_split_slice_is_clipped_as_one() {
        let gpu = small_gpu(4 * LARGEST_TILE + 256);
        let make = || {
            let numbers = (0_u16..).map(|i| f32::from(i % 1001) - 500.0);
            let body: Vec<f32> = numbers.clone().take(60_000).cycle().take(200_001).collect();
            let head: Vec<half::bf16> = numbers.map(half::bf16::from_f32).take(7).collect();
            (body, head)
        };
        let clip = Clip::by_global_norm(1.0).loss_scale(4.0);
        let ((mut body, mut head), (mut expected, mut head_expected)) = (make(), make());
        let outcome =
            clip_on(&gpu, &mut [Gradient::f32(&mut body), Gradient::bf16(&mut head)], &checked(clip), None);
        let mut gradients = [Gradient::f32(&mut expected), Gradient::bf16(&mut head_expected)];
        let record = crate::cpu::clip_groups(&mut gradients, &[clip]).unwrap()[0];
        let found = outcome.unwrap().0[0];
        assert!((found.total_norm - record.total_norm).abs() <= 1e-6 * record.total_norm, "{found:?}");
        let mut pairs = body.iter().zip(&expected);
        assert!(pairs.all(|(x, y)| (x - y).abs() <= 1e-6 * y.abs()), "the parts are in their places");
        assert_eq!(head, head_expected);

        let (mut body, mut whole) = (make().0, make().0);
        let supplied = Clip::by_supplied_norm(1.0);
        let records =
            clip_on(&gpu, &mut [Gradient::f32(&mut body)], &checked(supplied), Some(8.0)).unwrap().0;
        let record = crate::cpu::clip_with_norm(&mut [Gradient::f32(&mut whole)], supplied, 8.0).unwrap();
        assert_eq!((records, &body), (vec![record], &whole));

        // In the third part of the second gradient.
        expected[150_000] = f32::NAN;
        let mut gradients = [Gradient::bf16(&mut head), Gradient::f32(&mut expected)];
        let (records, _) = clip_on(&gpu, &mut gradients, &checked(clip.coefficient_only()), None).unwrap();
        assert_eq!(records[0].first_non_finite(), Some(1));
        let error = clip_on(&gpu, &mut gradients, &checked(clip.non_finite(crate::NonFinite::Error)), None);
        assert!(
            matches!(error, Err(Error::NonFinite { gradient: Some(GradientId { index: 1, .. }), .. })),
            "{error:?}"
        );
        let error = clip_on(
            &gpu,
            &mut [Gradient::f32(&mut body), Gradient::f32(&mut expected).group(1)],
            &checked(clip),
            None,
        );
        assert!(
            matches!(
                error,
                Err(Error::GroupWithoutClip { gradient: GradientId { index: 1, .. }, given: 1, groups: 1 })
            ),
            "{error:?}"
        );
    }

    #[test]
    fn a_slice_that_must_stay_whole_is_refused() {
        let gpu = small_gpu(4 * LARGEST_TILE + 256);
        let (mut large, mut small) = (vec![1.0; as_index(LARGEST_TILE) + 100], [2.0; 3]);
        let count = Clip::by_global_norm(1.0).norm_type(crate::NormType::P(0.0));
        for clip in [Clip::by_norm(1.0), Clip::by_rms(0.5), count] {
            let mut gradients = [Gradient::f32(&mut small), Gradient::f32(&mut large)];
            let error = clip_on(&gpu, &mut gradients, &checked(clip), None).unwrap_err();
            assert!(matches!(error, Error::DeviceLimit { name: "max_buffer_size", .. }), "{error}");
            assert!(clip_on(&gpu, &mut gradients[..1], &checked(clip), None).is_ok());
        }
    }
}
