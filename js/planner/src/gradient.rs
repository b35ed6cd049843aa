//! `Gradient`: the builder of [`plan::Gradient`], for JavaScript; and the buffers that it names by their index.

use std::ops::Range;

use gradclip::DType;
use gradclip::plan::{self, DeviceBuffer};
use wasm_bindgen::prelude::wasm_bindgen;

/// A buffer of the caller. Two are the same if they are one element of the list.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Buffer {
    index: usize,
    size: u64,
    usage: u32,
    mapped: bool,
}

impl Buffer {
    /// Makes the buffers of which the host tells the size, the usage and whether it is mapped.
    pub(crate) fn list(numbers: &[f64]) -> Vec<Self> {
        let buffers = numbers.chunks_exact(3).enumerate();
        let buffer = |(index, of): (usize, &[f64])| Self {
            index,
            size: of[0] as u64,
            usage: of[1] as u32,
            mapped: of[2] != 0.0,
        };
        buffers.map(buffer).collect()
    }

    pub(crate) const fn index(&self) -> usize {
        self.index
    }
}

impl DeviceBuffer for Buffer {
    fn size(&self) -> u64 {
        self.size
    }

    fn check_usage(&self) -> Result<(), String> {
        const NAMES: [&str; 10] = [
            "MAP_READ",
            "MAP_WRITE",
            "COPY_SRC",
            "COPY_DST",
            "INDEX",
            "VERTEX",
            "UNIFORM",
            "STORAGE",
            "INDIRECT",
            "QUERY_RESOLVE",
        ];
        if self.usage & plan::usage::STORAGE != 0 {
            return Ok(());
        }
        let mut names = Vec::new();
        for (bit, name) in NAMES.into_iter().enumerate() {
            if self.usage >> bit & 1 != 0 {
                names.push(name);
            }
        }
        Err(names.join(" | "))
    }

    fn is_mapped(&self) -> bool {
        self.mapped
    }
}

/// A range of a buffer.
#[derive(Debug)]
struct Place {
    buffer: usize,
    dtype: DType,
    bytes: Range<u64>,
}

impl Place {
    /// Without a length it reaches to the end of the buffer, whose size is `size`.
    fn new(buffer: usize, dtype: &str, size: f64, offset: f64, length: Option<f64>) -> Self {
        let dtype = match dtype {
            "f16" => DType::F16,
            "bf16" => DType::BF16,
            _ => DType::F32,
        };
        let start = offset as u64;
        // A saturated end is past the end of every buffer, which is an error.
        let end = length
            .map_or(size as u64, |length| start.saturating_add((length as u64).saturating_mul(dtype.size())));
        Self { buffer, dtype, bytes: start..end }
    }
}

/// A gradient.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Gradient {
    place: Place,
    label: Option<String>,
    group: usize,
    is_measured: bool,
    is_scaled: bool,
    rows: u64,
    columns: u64,
    part: Option<usize>,
    parameter: Option<Place>,
    /// The buffer, the elements of a partial, and the offset.
    partials: Option<(usize, u64, u64)>,
}

#[wasm_bindgen]
impl Gradient {
    #[wasm_bindgen(constructor)]
    pub fn new(buffer: usize, dtype: &str, size: f64, offset: f64, length: Option<f64>) -> Self {
        Self {
            place: Place::new(buffer, dtype, size, offset, length),
            label: None,
            group: 0,
            is_measured: true,
            is_scaled: true,
            rows: 1,
            columns: 1,
            part: None,
            parameter: None,
            partials: None,
        }
    }

    pub fn label(&mut self, label: String) {
        self.label = Some(label);
    }

    pub fn group(&mut self, group: usize) {
        self.group = group;
    }

    pub fn measured(&mut self, is_measured: bool) {
        self.is_measured = is_measured;
    }

    pub fn scaled(&mut self, is_scaled: bool) {
        self.is_scaled = is_scaled;
    }

    pub fn rows(&mut self, rows: f64) {
        self.rows = rows as u64;
    }

    pub fn columns(&mut self, columns: f64) {
        self.columns = columns as u64;
    }

    pub fn part(&mut self, part: usize) {
        self.part = Some(part);
    }

    pub fn parameter(&mut self, buffer: usize, dtype: &str, size: f64, offset: f64, length: Option<f64>) {
        self.parameter = Some(Place::new(buffer, dtype, size, offset, length));
    }

    pub fn partials(&mut self, buffer: usize, elements: f64, offset: f64) {
        self.partials = Some((buffer, elements as u64, offset as u64));
    }
}

impl Gradient {
    /// The same gradient, on the buffers of the list.
    pub(crate) fn on<'a>(&'a self, buffers: &'a [Buffer]) -> plan::Gradient<'a, Buffer> {
        let Place { buffer, dtype, ref bytes } = self.place;
        let mut gradient = plan::Gradient::new(&buffers[buffer], dtype)
            .bytes(bytes.clone())
            .group(self.group)
            .rows(self.rows)
            .columns(self.columns);
        if let Some(label) = &self.label {
            gradient = gradient.label(label);
        }
        if !self.is_measured {
            gradient = gradient.unmeasured();
        }
        if !self.is_scaled {
            gradient = gradient.unscaled();
        }
        if let Some(part) = self.part {
            gradient = gradient.part(part);
        }
        if let Some(Place { buffer, dtype, bytes }) = &self.parameter {
            gradient =
                gradient.parameter(plan::Parameter::new(&buffers[*buffer], *dtype).bytes(bytes.clone()));
        }
        if let Some((buffer, elements, offset)) = self.partials {
            gradient = gradient.partials(plan::Partials::new(&buffers[buffer], elements).offset(offset));
        }
        gradient
    }
}
