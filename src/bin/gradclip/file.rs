//! Files of gradients: `.safetensors` in, the same file with other values out.
//!
//! The format: eight bytes with the length of the header, little-endian; the header, a JSON object from names to dtypes,
//! shapes and offsets; the tensors, without gaps.

use std::collections::TryReserveError;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use bytemuck::Zeroable;
use gradclip::DType;
use gradclip::cpu::Gradient;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use crate::progress::Progress;

/// The limit of the format, so that a damaged length cannot ask for all memory.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes between two steps of the progress bar.
const CHUNK: usize = 1 << 22;

/// A file of gradients in memory.
pub(crate) struct Gradients {
    /// The header as it was read: written back unchanged, it keeps names, shapes, order and metadata.
    header: Vec<u8>,
    tensors: Vec<Tensor>,
    values: Vec<Values>,
}

#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// In bytes from the start of the data.
    extent: Range<usize>,
}

/// The elements of one tensor. Each has memory of its own: in the file they need not be aligned.
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Gradients {
    pub(crate) fn read(path: &Path, progress: &Progress) -> Result<Self> {
        File::open(path)
            .map_err(Into::into)
            .and_then(|file| Self::read_from(file, progress))
            .with_context(|| format!("cannot read {}", path.display()))
    }

    fn read_from(mut file: File, progress: &Progress) -> Result<Self> {
        let about = file.metadata()?;
        ensure!(about.is_file(), "it is not a regular file");
        let header = read_header(&mut file, about.len())?;
        let layout = parse_header(&header)?;
        let data = about.len() - size_of::<u64>() as u64 - header.len() as u64;
        ensure!(
            layout.data_len() as u64 == data,
            "its header describes {} bytes of tensors, but {data} bytes follow",
            layout.data_len()
        );
        progress.expect(layout.data_len());
        let tensors = tensors(&layout)?;
        let read = |tensor| Values::read(tensor, &mut file, progress);
        let values = tensors.iter().map(read).collect::<Result<_>>()?;
        Ok(Self { header, tensors, values })
    }

    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// What is to be clipped, each tensor in the group that the list says.
    pub(crate) fn list(&mut self, group_of: &[usize]) -> Vec<Gradient<'_>> {
        let gradients = self.values.iter_mut().map(Values::gradient);
        gradients.zip(group_of).map(|(gradient, &group)| gradient.group(group)).collect()
    }

    fn write_to(mut self, file: &mut impl Write, progress: &Progress) -> Result<()> {
        progress.expect(self.tensors.iter().map(|tensor| tensor.extent.len()).sum());
        file.write_all(&(self.header.len() as u64).to_le_bytes())?;
        file.write_all(&self.header)?;
        for (tensor, values) in self.tensors.iter().zip(&mut self.values) {
            for chunk in values.bytes_mut().chunks_mut(CHUNK) {
                swap_little_endian(chunk, tensor.dtype);
                file.write_all(chunk)?;
                progress.advance(chunk.len());
            }
        }
        Ok(())
    }
}

impl Values {
    /// The elements of the tensor that comes next in the file.
    fn read(tensor: &Tensor, file: &mut File, progress: &Progress) -> Result<Self> {
        let mut values = Self::zeros(tensor)?;
        for chunk in values.bytes_mut().chunks_mut(CHUNK) {
            file.read_exact(chunk)?;
            swap_little_endian(chunk, tensor.dtype);
            progress.advance(chunk.len());
        }
        Ok(values)
    }

    fn zeros(tensor: &Tensor) -> Result<Self> {
        let bytes = tensor.extent.len();
        Ok(match tensor.dtype {
            DType::F32 => Self::F32(zeros(bytes / 4)?),
            DType::F16 => Self::F16(zeros(bytes / 2)?),
            DType::BF16 => Self::BF16(zeros(bytes / 2)?),
            other => bail!("tensor {:?} is of dtype {other:?}, which this command cannot read", tensor.name),
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
fn zeros<T: Zeroable + Clone>(len: usize) -> Result<Vec<T>, TryReserveError> {
    let mut values = Vec::new();
    values.try_reserve_exact(len)?;
    values.resize(len, T::zeroed());
    Ok(values)
}

fn read_header(file: &mut File, file_len: u64) -> Result<Vec<u8>> {
    let mut len = [0; size_of::<u64>()];
    let rest = file_len
        .checked_sub(len.len() as u64)
        .with_context(|| format!("it is no .safetensors file: it has {file_len} bytes"))?;
    file.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    ensure!(
        len <= rest.min(MAX_HEADER),
        "it is damaged, or no .safetensors file: its header is {len} bytes long, but {rest} bytes follow, and {MAX_HEADER} are allowed"
    );
    let mut header = vec![0; usize::try_from(len)?];
    file.read_exact(&mut header)?;
    Ok(header)
}

fn parse_header(header: &[u8]) -> Result<Metadata> {
    let json: Value = serde_json::from_slice(header).context("its header is not JSON")?;
    // Before the parser of the format, which refuses dtypes of tomorrow without saying which tensor has them.
    for (name, info) in json.as_object().into_iter().flatten().filter(|(name, _)| *name != "__metadata__") {
        match info["dtype"].as_str() {
            None | Some("F32" | "F16" | "BF16") => {}
            Some(dtype) => {
                bail!("tensor {name:?} is of dtype {dtype:?}, but only F32, F16 and BF16 are allowed")
            }
        }
    }
    let layout: Metadata = serde_json::from_value(json).context("its header is damaged")?;
    ensure!(!layout.tensors().is_empty(), "it holds no tensors");
    Ok(layout)
}

/// In the order of the data; tensors without elements may share a place there.
fn tensors(layout: &Metadata) -> Result<Vec<Tensor>> {
    let mut tensors: Vec<_> = layout.tensors().into_iter().collect();
    tensors.sort_by(|(a, x), (b, y)| (x.data_offsets, a).cmp(&(y.data_offsets, b)));
    let tensor = |(name, info): (String, &TensorInfo)| {
        let (start, end) = info.data_offsets;
        Ok(Tensor { name, dtype: dtype(info.dtype)?, shape: info.shape.clone(), extent: start..end })
    };
    tensors.into_iter().map(tensor).collect()
}

fn dtype(dtype: Dtype) -> Result<DType> {
    Ok(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => bail!("dtype {other:?} is not allowed"),
    })
}

/// From the order of the file to that of the machine, or back; on most machines they are the same.
fn swap_little_endian(bytes: &mut [u8], dtype: DType) {
    let size = if dtype == DType::F32 { 4 } else { 2 };
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
}

/// A place to write to. What was there stays until all of the new file is safely on disk.
pub(crate) struct Output {
    target: PathBuf,
    permissions: Option<Permissions>,
}

impl Output {
    /// Fails where writing would, as far as that can be known beforehand.
    pub(crate) fn check(path: &Path) -> Result<Self> {
        // Behind a link, since the link itself would be replaced by a file.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let output = Self { permissions: fs::metadata(&target).ok().map(|old| old.permissions()), target };
        output.probe().with_context(|| output.cannot_write())?;
        Ok(output)
    }

    fn probe(&self) -> Result<()> {
        ensure!(self.target.file_name().is_some(), "it names no file");
        ensure!(self.permissions.is_none() || self.target.is_file(), "it is not a regular file");
        ensure!(!self.permissions.as_ref().is_some_and(Permissions::readonly), "it is read-only");
        // Without a name, so that an interrupted run leaves nothing behind.
        tempfile::tempfile_in(self.folder())?;
        Ok(())
    }

    pub(crate) fn write(self, gradients: Gradients, progress: &Progress) -> Result<()> {
        let message = self.cannot_write();
        self.replace(gradients, progress).context(message)
    }

    fn replace(self, gradients: Gradients, progress: &Progress) -> Result<()> {
        // Not the private file that `tempfile` makes by itself: a new output obeys the umask, as any other file.
        let mut file = tempfile::Builder::new()
            .prefix(".gradclip-")
            .make_in(self.folder(), |path| File::create_new(path))?;
        gradients.write_to(file.as_file_mut(), progress)?;
        if let Some(permissions) = self.permissions {
            file.as_file().set_permissions(permissions)?;
        }
        file.as_file().sync_all()?;
        file.persist(self.target)?;
        Ok(())
    }

    fn folder(&self) -> &Path {
        let parent = self.target.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.unwrap_or(Path::new("."))
    }

    fn cannot_write(&self) -> String {
        format!("cannot write {}", self.target.display())
    }
}
