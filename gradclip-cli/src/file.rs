//! Reads, clips and writes gradients in `.safetensors` files.
//!
//! A file consists of the header's length (eight bytes, little-endian), the header (a JSON object that maps names to
//! dtypes, shapes and offsets) and the tensors without gaps. Tensors are read, clipped and written in chunks, so that
//! files may be larger than memory. The GPU path loads all tensors into memory first.

mod header;
mod input;
mod output;
mod signals;

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::mem;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytemuck::Zeroable;
use gradclip::cpu::{Gradient, Measurement};
use gradclip::{DType, Error};
use gradclip_measure::text::{self, quoted};
use half::{bf16, f16};

use crate::stages::Stages;
pub(crate) use input::{Files, Inputs};
use input::{Source, cannot_read};
pub(crate) use output::{Output, Target, Writer};
pub(crate) use signals::survive_file_size_limit;

/// The bytes of a chunk: a multiple of a [`Measurement`]'s chunk, and enough for many threads.
const CHUNK_BYTES: usize = 1 << 24;
const _: () = assert!(CHUNK_BYTES.is_multiple_of(4 * Measurement::CHUNK_LEN));

/// The tensors of the input files, both clipped and excluded.
pub(crate) struct Gradients {
    sources: Vec<(Source, Vec<DataRange>)>,
    tensors: Vec<Tensor>,
    group_of: Vec<usize>,
    excluded: Vec<String>,
    index: Option<(PathBuf, Vec<u8>)>,
    /// The elements of all tensors, once [`load`](Self::load) has read them.
    memory: Option<Vec<TensorData>>,
    /// The chunk buffer for tensors that are not in memory.
    buffer: Vec<u32>,
}

/// A tensor to clip.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: u64,
}

/// The bytes of a tensor in a file.
struct DataRange {
    /// The byte range, relative to the start of the data.
    data_offsets: Range<u64>,
    /// The index of the tensor. `None` if it is excluded.
    tensor: Option<usize>,
}

/// A run of elements of one tensor.
pub(crate) struct Chunk<'a> {
    /// The index of the tensor.
    pub(crate) tensor: usize,
    /// Whether this is the first chunk of the tensor.
    pub(crate) is_first: bool,
    elements: Elements<'a>,
}

enum Elements<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    BF16(&'a mut [bf16]),
}

/// All elements of one tensor in aligned memory. Tensors may be unaligned in the file.
enum TensorData {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Gradients {
    /// Collects the tensors of `files`. `groups` holds the group of each tensor, or `None` if it is excluded.
    pub(crate) fn new(files: Files, groups: &[Option<usize>]) -> Result<Self> {
        let Files { files, index } = files;
        let mut gradients = Self {
            sources: Vec::with_capacity(files.len()),
            tensors: Vec::new(),
            group_of: groups.iter().copied().flatten().collect(),
            excluded: Vec::new(),
            index,
            memory: None,
            buffer: Vec::new(),
        };
        let mut groups = groups.iter();
        let mut unsupported = Vec::new();
        for (source, entries) in files {
            let mut ranges = Vec::with_capacity(entries.len());
            for entry in entries {
                let data_offsets = entry.data_offsets;
                let mut tensor = None;
                if groups.next().is_some_and(Option::is_some) {
                    tensor = Some(gradients.tensors.len());
                    let bytes = data_offsets.end - data_offsets.start;
                    match dtype(&entry.dtype) {
                        Some(dtype) => {
                            gradients.tensors.push(Tensor {
                                name: entry.name,
                                dtype,
                                shape: entry.shape,
                                bytes,
                            });
                        }
                        None => unsupported.push((entry.name, entry.dtype)),
                    }
                } else {
                    gradients.excluded.push(entry.name);
                }
                ranges.push(DataRange { data_offsets, tensor });
            }
            if let [(name, dtype), more @ ..] = &unsupported[..] {
                let more = if more.is_empty() {
                    String::new()
                } else {
                    format!(" (the first of {} such tensors)", more.len() + 1)
                };
                let error = anyhow!(
                    "tensor {} has dtype {}, but only F32, F16 and BF16 can be clipped; --exclude skips a tensor{more}",
                    quoted(name),
                    quoted(dtype)
                );
                return Err(error.context(cannot_read(&source.path)));
            }
            gradients.sources.push((source, ranges));
        }
        ensure!(!gradients.tensors.is_empty(), "--exclude matches every tensor, so there is nothing to clip");
        Ok(gradients)
    }

    /// Returns the tensors to clip.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Returns the group of each tensor to clip.
    pub(crate) fn group_of(&self) -> &[usize] {
        &self.group_of
    }

    /// Returns the names of the excluded tensors.
    pub(crate) fn excluded(&self) -> &[String] {
        &self.excluded
    }

    /// Returns the total bytes to clip.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Returns the largest tensor to clip.
    pub(crate) fn largest(&self) -> Option<&Tensor> {
        self.tensors.iter().max_by_key(|tensor| tensor.bytes)
    }

    /// Returns the target of each output file.
    pub(crate) fn targets(&self, output: Output) -> Result<Vec<Target>> {
        let paths = self.sources.iter().map(|(source, _)| &source.path);
        let paths = paths.chain(self.index.iter().map(|(path, _)| path));
        let names: Vec<&Path> = paths.filter_map(|path| path.file_name()).map(Path::new).collect();
        let mut sorted = names.clone();
        sorted.sort();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!(
                "two input files are named {}, but the output folder can hold only one file of that name",
                text::path(pair[0])
            );
        }
        output.targets(&names)
    }

    /// Whether [`load`](Self::load) has read the tensors into memory.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// Reads all tensors to clip into memory, for the GPU path.
    pub(crate) fn load(&mut self, stages: &mut Stages<'_>) -> Result<()> {
        stages.expect(self.bytes());
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for (source, ranges) in &self.sources {
            for (range, tensor) in
                ranges.iter().filter_map(|range| Some((range, &self.tensors[range.tensor?])))
            {
                let mut values = TensorData::zeros(tensor)?;
                let mut at = source.data + range.data_offsets.start;
                for chunk in values.bytes_mut().chunks_mut(CHUNK_BYTES) {
                    stages.read(chunk.len(), || source.read(at, chunk))?;
                    swap_little_endian(chunk, tensor.dtype);
                    at += chunk.len() as u64;
                }
                tensors.push(values);
            }
        }
        self.memory = Some(tensors);
        Ok(())
    }

    /// Returns the tensors in memory with their groups. Empty before [`load`](Self::load).
    pub(crate) fn gradients(&mut self) -> Vec<Gradient<'_>> {
        let gradients = self.memory.iter_mut().flatten().map(TensorData::gradient);
        gradients.zip(&self.group_of).map(|(gradient, &group)| gradient.group(group)).collect()
    }

    /// Runs `work` on each chunk of the tensors to clip. With a `writer` it then writes the chunk, copies headers,
    /// excluded tensors and the index unchanged, and closes the input files: this must be the last pass.
    pub(crate) fn pass(
        &mut self,
        stages: &mut Stages<'_>,
        mut writer: Option<Writer>,
        mut work: impl FnMut(&mut Chunk<'_>, &mut Stages<'_>) -> Result<()>,
    ) -> Result<()> {
        stages.expect(self.bytes());
        let mut buffer = mem::take(&mut self.buffer);
        buffer.resize(CHUNK_BYTES / size_of::<u32>(), 0);
        for (source, ranges) in &self.sources {
            if let Some(writer) = &mut writer {
                writer.begin()?;
                source.copy(0..source.data, &mut buffer, writer, stages)?;
            }
            for tensor_range in ranges {
                let file_range = source.data + tensor_range.data_offsets.start
                    ..source.data + tensor_range.data_offsets.end;
                let Some(index) = tensor_range.tensor else {
                    if let Some(writer) = &mut writer {
                        source.copy(file_range, &mut buffer, writer, stages)?;
                    }
                    continue;
                };
                let dtype = self.tensors[index].dtype;
                let mut is_first = true;
                for range in chunks(file_range.end - file_range.start) {
                    let all_bytes: &mut [u8];
                    let bytes = if let Some(memory) = &mut self.memory {
                        all_bytes = memory[index].bytes_mut();
                        &mut all_bytes[as_index(range.start)..as_index(range.end)]
                    } else {
                        all_bytes = bytemuck::cast_slice_mut(&mut buffer);
                        let bytes = &mut all_bytes[..as_index(range.end - range.start)];
                        stages.read(bytes.len(), || source.read(file_range.start + range.start, bytes))?;
                        swap_little_endian(bytes, dtype);
                        bytes
                    };
                    let elements = Elements::of(&mut *bytes, dtype);
                    work(&mut Chunk { tensor: index, is_first, elements }, stages)?;
                    is_first = false;
                    if let Some(writer) = &mut writer {
                        swap_little_endian(bytes, dtype);
                        stages.time("write", || writer.write(bytes))?;
                    }
                }
            }
            source.check_unchanged()?;
            if let Some(writer) = &mut writer {
                stages.time("write", || writer.end())?;
            }
        }
        self.buffer = buffer;
        let Some(mut writer) = writer else { return Ok(()) };
        // Windows does not replace open files, and an output may replace an input.
        self.sources.clear();
        stages.time("write", || {
            if let Some((_, bytes)) = &self.index {
                writer.begin()?;
                writer.write(bytes)?;
                writer.end()?;
            }
            writer.commit()
        })
    }
}

impl Source {
    /// Fills `bytes` from offset `at` of the file.
    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let mut file: &File = &self.file;
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(bytes));
        read.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => anyhow!("the file was truncated while it was read"),
            _ => error.into(),
        })
        .with_context(|| cannot_read(&self.path))
    }

    /// Copies a byte range of the file unchanged.
    fn copy(
        &self,
        file_range: Range<u64>,
        buffer: &mut [u32],
        writer: &mut Writer,
        stages: &mut Stages<'_>,
    ) -> Result<()> {
        for range in chunks(file_range.end - file_range.start) {
            let bytes = &mut bytemuck::cast_slice_mut(buffer)[..as_index(range.end - range.start)];
            stages.time("read", || self.read(file_range.start + range.start, bytes))?;
            stages.time("write", || writer.write(bytes))?;
        }
        Ok(())
    }
}

/// Splits `bytes` into ranges of at most [`CHUNK_BYTES`]. An empty tensor has one empty range.
fn chunks(bytes: u64) -> impl Iterator<Item = Range<u64>> {
    let chunk = CHUNK_BYTES as u64;
    (0..bytes.div_ceil(chunk).max(1)).map(move |index| index * chunk..bytes.min((index + 1) * chunk))
}

impl Chunk<'_> {
    /// Returns the chunk as a gradient of the CPU path.
    pub(crate) fn gradient(&mut self) -> Gradient<'_> {
        match &mut self.elements {
            Elements::F32(elements) => Gradient::f32(elements),
            Elements::F16(elements) => Gradient::f16(elements),
            Elements::BF16(elements) => Gradient::bf16(elements),
        }
    }

    /// Adds the chunk to the measurement of its tensor.
    pub(crate) fn add_to(&self, measurement: &mut Measurement) -> Result<(), Error> {
        match &self.elements {
            Elements::F32(elements) => measurement.add_f32(elements),
            Elements::F16(elements) => measurement.add_f16(elements),
            Elements::BF16(elements) => measurement.add_bf16(elements),
        }
    }
}

impl<'a> Elements<'a> {
    /// Casts bytes to elements. Panics if their alignment or length does not fit the dtype.
    fn of(bytes: &'a mut [u8], dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self::F16(bytemuck::cast_slice_mut(bytes)),
            DType::BF16 => Self::BF16(bytemuck::cast_slice_mut(bytes)),
            _ => Self::F32(bytemuck::cast_slice_mut(bytes)),
        }
    }
}

impl TensorData {
    fn zeros(tensor: &Tensor) -> Result<Self> {
        let len = usize::try_from(tensor.bytes / tensor.dtype.size());
        let values = len.ok().and_then(|len| match tensor.dtype {
            DType::F16 => zeros(len).map(Self::F16),
            DType::BF16 => zeros(len).map(Self::BF16),
            _ => zeros(len).map(Self::F32),
        });
        values.with_context(|| {
            format!(
                "out of memory for tensor {} ({} bytes); --device cpu reads it in chunks",
                quoted(&tensor.name),
                tensor.bytes
            )
        })
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice_mut(values),
            Self::F16(values) => bytemuck::cast_slice_mut(values),
            Self::BF16(values) => bytemuck::cast_slice_mut(values),
        }
    }

    fn gradient(&mut self) -> Gradient<'_> {
        match self {
            Self::F32(values) => Gradient::f32(values),
            Self::F16(values) => Gradient::f16(values),
            Self::BF16(values) => Gradient::bf16(values),
        }
    }
}

/// Allocates `len` zeros, or returns `None` if memory runs out.
fn zeros<T: Zeroable + Clone>(len: usize) -> Option<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).ok()?;
    values.resize(len, T::zeroed());
    Some(values)
}

/// Parses a dtype. Returns `None` if it cannot be clipped.
fn dtype(name: &str) -> Option<DType> {
    match name {
        "F32" => Some(DType::F32),
        "F16" => Some(DType::F16),
        "BF16" => Some(DType::BF16),
        _ => None,
    }
}

/// Converts elements between little-endian and native byte order.
fn swap_little_endian(bytes: &mut [u8], dtype: DType) {
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(as_index(dtype.size())).for_each(<[u8]>::reverse);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the value is a size in memory")]
const fn as_index(bytes: u64) -> usize {
    bytes as usize
}
