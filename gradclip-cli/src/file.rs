//! Files of gradients: `.safetensors` in, the same files with other values out.
//!
//! The format: eight bytes with the length of the header, little-endian; the header, a JSON object from names to dtypes,
//! shapes and offsets; the tensors, without gaps. Tensors are read, clipped and written in chunks, so that files may be larger
//! than memory; a GPU needs all of them in memory once.

mod header;
mod interrupt;
mod output;
mod set;

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
pub(crate) use interrupt::survive_file_size_limit;
pub(crate) use output::{Output, Target, Writer};
pub(crate) use set::{Files, Inputs};
use set::{Source, cannot_read};

/// The bytes that are read and clipped at once: whole chunks of a [`Measurement`], and enough for many threads.
const CHUNK: usize = 1 << 24;
const _: () = assert!(CHUNK.is_multiple_of(4 * Measurement::CHUNK_LEN));

/// The gradients of some files: those that are to be clipped, and what stays as it is.
pub(crate) struct Gradients {
    sources: Vec<(Source, Vec<Part>)>,
    tensors: Vec<Tensor>,
    group_of: Vec<usize>,
    excluded: Vec<String>,
    index: Option<(PathBuf, Vec<u8>)>,
    /// The elements, if all of them are in memory.
    memory: Option<Vec<Values>>,
    /// For those that are not.
    buffer: Vec<u32>,
}

/// A tensor that is to be clipped.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: u64,
}

/// A range of a file's data.
struct Part {
    /// In bytes from the start of the data.
    extent: Range<u64>,
    /// Which tensor it is, unless it is excluded.
    tensor: Option<usize>,
}

/// Elements of one tensor.
pub(crate) struct Chunk<'a> {
    /// Which tensor.
    pub(crate) tensor: usize,
    /// Whether it is the first of the tensor.
    pub(crate) is_first: bool,
    elements: Elements<'a>,
}

enum Elements<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    BF16(&'a mut [bf16]),
}

/// All elements of one tensor. Each has memory of its own: in the file they need not be aligned.
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Gradients {
    /// The tensors of these files, each in the group that the list says, or excluded.
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
        let mut others = Vec::new();
        for (source, entries) in files {
            let mut parts = Vec::with_capacity(entries.len());
            for entry in entries {
                let extent = entry.extent;
                let mut tensor = None;
                if groups.next().is_some_and(Option::is_some) {
                    tensor = Some(gradients.tensors.len());
                    let bytes = extent.end - extent.start;
                    match dtype(&entry.dtype) {
                        Some(dtype) => {
                            gradients.tensors.push(Tensor {
                                name: entry.name,
                                dtype,
                                shape: entry.shape,
                                bytes,
                            });
                        }
                        None => others.push((entry.name, entry.dtype)),
                    }
                } else {
                    gradients.excluded.push(entry.name);
                }
                parts.push(Part { extent, tensor });
            }
            if let [(name, dtype), more @ ..] = &others[..] {
                let more = if more.is_empty() {
                    String::new()
                } else {
                    format!(" (it is the first of {} such tensors)", more.len() + 1)
                };
                let error = anyhow!(
                    "tensor {} has dtype {}, but only F32, F16 and BF16 can be clipped; --exclude leaves a tensor as it is{more}",
                    quoted(name),
                    quoted(dtype)
                );
                return Err(error.context(cannot_read(&source.path)));
            }
            gradients.sources.push((source, parts));
        }
        ensure!(!gradients.tensors.is_empty(), "--exclude matches every tensor, so nothing is left to clip");
        Ok(gradients)
    }

    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    pub(crate) fn group_of(&self) -> &[usize] {
        &self.group_of
    }

    /// The names of what is left as it is.
    pub(crate) fn excluded(&self) -> &[String] {
        &self.excluded
    }

    /// The bytes that are to be clipped.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// The tensor that takes the most memory.
    pub(crate) fn largest(&self) -> Option<&Tensor> {
        self.tensors.iter().max_by_key(|tensor| tensor.bytes)
    }

    /// Where each file is to be written, if `-o` leads there.
    pub(crate) fn targets(&self, output: Output) -> Result<Vec<Target>> {
        let paths = self.sources.iter().map(|(source, _)| &source.path);
        let paths = paths.chain(self.index.iter().map(|(path, _)| path));
        let names: Vec<&Path> = paths.filter_map(|path| path.file_name()).map(Path::new).collect();
        let mut sorted = names.clone();
        sorted.sort();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!(
                "two of the files are called {}, but the folder of -o can hold only one file of that name",
                text::path(pair[0])
            );
        }
        output.targets(&names)
    }

    pub(crate) fn is_in_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// Reads everything that is to be clipped into memory, for a GPU.
    pub(crate) fn load(&mut self, stages: &mut Stages<'_>) -> Result<()> {
        stages.expect(self.bytes());
        let mut values = Vec::with_capacity(self.tensors.len());
        for (source, parts) in &self.sources {
            for (part, tensor) in parts.iter().filter_map(|part| Some((part, &self.tensors[part.tensor?]))) {
                let mut own = Values::zeros(tensor)?;
                let mut at = source.data + part.extent.start;
                for chunk in own.bytes_mut().chunks_mut(CHUNK) {
                    stages.read(chunk.len(), || source.read(at, chunk))?;
                    swap_little_endian(chunk, tensor.dtype);
                    at += chunk.len() as u64;
                }
                values.push(own);
            }
        }
        self.memory = Some(values);
        Ok(())
    }

    /// What is in memory, each tensor in its group; nothing before [`load`](Self::load).
    pub(crate) fn list(&mut self) -> Vec<Gradient<'_>> {
        let gradients = self.memory.iter_mut().flatten().map(Values::gradient);
        gradients.zip(&self.group_of).map(|(gradient, &group)| gradient.group(group)).collect()
    }

    /// Works on all tensors that are to be clipped, chunk by chunk. With a writer it also writes each chunk as the work has left
    /// it, and closes the files: it is then the last pass.
    pub(crate) fn pass(
        &mut self,
        stages: &mut Stages<'_>,
        mut writer: Option<Writer>,
        mut work: impl FnMut(&mut Chunk<'_>, &mut Stages<'_>) -> Result<()>,
    ) -> Result<()> {
        stages.expect(self.bytes());
        let mut buffer = mem::take(&mut self.buffer);
        buffer.resize(CHUNK / size_of::<u32>(), 0);
        for (source, parts) in &self.sources {
            if let Some(writer) = &mut writer {
                writer.begin()?;
                source.copy(0..source.data, &mut buffer, writer, stages)?;
            }
            for part in parts {
                let extent = source.data + part.extent.start..source.data + part.extent.end;
                let Some(index) = part.tensor else {
                    if let Some(writer) = &mut writer {
                        source.copy(extent, &mut buffer, writer, stages)?;
                    }
                    continue;
                };
                let dtype = self.tensors[index].dtype;
                let mut is_first = true;
                for range in chunks(extent.end - extent.start) {
                    let own: &mut [u8];
                    let bytes = if let Some(memory) = &mut self.memory {
                        own = memory[index].bytes_mut();
                        &mut own[as_index(range.start)..as_index(range.end)]
                    } else {
                        own = bytemuck::cast_slice_mut(&mut buffer);
                        let bytes = &mut own[..as_index(range.end - range.start)];
                        stages.read(bytes.len(), || source.read(extent.start + range.start, bytes))?;
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
    /// Reads bytes of the file.
    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let mut file: &File = &self.file;
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(bytes));
        read.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => anyhow!("it became shorter while it was read"),
            _ => error.into(),
        })
        .with_context(|| cannot_read(&self.path))
    }

    /// Copies bytes of the file as they are.
    fn copy(
        &self,
        extent: Range<u64>,
        buffer: &mut [u32],
        writer: &mut Writer,
        stages: &mut Stages<'_>,
    ) -> Result<()> {
        for range in chunks(extent.end - extent.start) {
            let bytes = &mut bytemuck::cast_slice_mut(buffer)[..as_index(range.end - range.start)];
            stages.time("read", || self.read(extent.start + range.start, bytes))?;
            stages.time("write", || writer.write(bytes))?;
        }
        Ok(())
    }
}

/// Ranges of so many bytes, none longer than [`CHUNK`]; a tensor without elements has one, too.
fn chunks(bytes: u64) -> impl Iterator<Item = Range<u64>> {
    let chunk = CHUNK as u64;
    (0..bytes.div_ceil(chunk).max(1)).map(move |index| index * chunk..bytes.min((index + 1) * chunk))
}

impl Chunk<'_> {
    pub(crate) fn gradient(&mut self) -> Gradient<'_> {
        match &mut self.elements {
            Elements::F32(elements) => Gradient::f32(elements),
            Elements::F16(elements) => Gradient::f16(elements),
            Elements::BF16(elements) => Gradient::bf16(elements),
        }
    }

    pub(crate) fn add_to(&self, measurement: &mut Measurement) -> Result<(), Error> {
        match &self.elements {
            Elements::F32(elements) => measurement.add_f32(elements),
            Elements::F16(elements) => measurement.add_f16(elements),
            Elements::BF16(elements) => measurement.add_bf16(elements),
        }
    }
}

impl<'a> Elements<'a> {
    /// Bytes as elements. Their place in memory and their number must be right for the dtype.
    fn of(bytes: &'a mut [u8], dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self::F16(bytemuck::cast_slice_mut(bytes)),
            DType::BF16 => Self::BF16(bytemuck::cast_slice_mut(bytes)),
            _ => Self::F32(bytemuck::cast_slice_mut(bytes)),
        }
    }
}

impl Values {
    fn zeros(tensor: &Tensor) -> Result<Self> {
        let len = usize::try_from(tensor.bytes / tensor.dtype.size());
        let values = len.ok().and_then(|len| match tensor.dtype {
            DType::F16 => zeros(len).map(Self::F16),
            DType::BF16 => zeros(len).map(Self::BF16),
            _ => zeros(len).map(Self::F32),
        });
        values.with_context(|| {
            format!(
                "out of memory for tensor {} ({} bytes); --device cpu reads it piece by piece",
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

/// Not more than there is memory for.
fn zeros<T: Zeroable + Clone>(len: usize) -> Option<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).ok()?;
    values.resize(len, T::zeroed());
    Some(values)
}

/// The dtype, if gradients of it can be clipped.
fn dtype(name: &str) -> Option<DType> {
    match name {
        "F32" => Some(DType::F32),
        "F16" => Some(DType::F16),
        "BF16" => Some(DType::BF16),
        _ => None,
    }
}

/// From the order of the file to that of the machine, or back; on most machines they are the same.
fn swap_little_endian(bytes: &mut [u8], dtype: DType) {
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(as_index(dtype.size())).for_each(<[u8]>::reverse);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it is a size of something in memory")]
const fn as_index(bytes: u64) -> usize {
    bytes as usize
}
