//! The gradients of a request: `Gradient` of `options.ts`, with the index of a buffer in place of the buffer.

use gradclip::DType;
use gradclip::plan::{self, DeviceBuffer};
use serde::Deserialize;
use serde_json::Value;

use crate::error::Details;

/// A buffer of the caller. Two are the same if they are one element of the list.
#[derive(Debug, PartialEq, Eq, Hash, Deserialize)]
pub(crate) struct Buffer {
    index: usize,
    size: u64,
    usage: u32,
    mapped: bool,
}

impl DeviceBuffer for Buffer {
    fn size(&self) -> u64 {
        self.size
    }

    fn check_usage(&self) -> Result<(), String> {
        const NAMES: [&str; 10] = [
            "MAP_READ", "MAP_WRITE", "COPY_SRC", "COPY_DST", "INDEX", "VERTEX", "UNIFORM", "STORAGE", "INDIRECT",
            "QUERY_RESOLVE",
        ];
        if self.usage & plan::usage::STORAGE != 0 {
            return Ok(());
        }
        let names: Vec<_> =
            (0..).zip(NAMES).filter(|(bit, _)| self.usage >> bit & 1 != 0).map(|(_, name)| name).collect();
        Err(names.join(" | "))
    }

    fn is_mapped(&self) -> bool {
        self.mapped
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Gradient {
    buffer: usize,
    dtype: Option<String>,
    byte_offset: Option<u64>,
    length: Option<u64>,
    label: Option<String>,
    group: Option<usize>,
    measured: Option<bool>,
    scaled: Option<bool>,
    rows: Option<u64>,
    columns: Option<u64>,
    part: Option<usize>,
    parameter: Option<Parameter>,
    partials: Option<Partials>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Parameter {
    buffer: usize,
    dtype: Option<String>,
    byte_offset: Option<u64>,
    length: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Partials {
    buffer: usize,
    elements: u64,
    byte_offset: Option<u64>,
}

/// Reads the gradients. Errors name the gradient.
pub(crate) fn parse(gradients: &[Value]) -> Result<Vec<Gradient>, Details> {
    let parse = |(index, value): (usize, &Value)| {
        let label = value.get("label").and_then(Value::as_str);
        let in_gradient = |message: String| Details::of_gradient(index, label, &message);
        let gradient = Gradient::deserialize(value).map_err(|error| in_gradient(error.to_string()))?;
        // Checked here, so that `on` cannot fail.
        let parameter = gradient.parameter.as_ref().and_then(|parameter| parameter.dtype.as_deref());
        for dtype in [gradient.dtype.as_deref(), parameter].into_iter().flatten() {
            dtype.parse::<DType>().map_err(|error| in_gradient(error.to_string()))?;
        }
        Ok(gradient)
    };
    gradients.iter().enumerate().map(parse).collect()
}

impl Gradient {
    /// The same gradient, on the buffers of the request.
    pub(crate) fn on<'a>(&'a self, buffers: &'a [Buffer]) -> plan::Gradient<'a, Buffer> {
        let buffer = &buffers[self.buffer];
        let dtype = dtype(self.dtype.as_deref());
        let mut gradient = plan::Gradient::new(buffer, dtype)
            .bytes(bytes(buffer, dtype, self.byte_offset, self.length))
            .group(self.group.unwrap_or(0))
            .rows(self.rows.unwrap_or(1))
            .columns(self.columns.unwrap_or(1));
        if let Some(label) = &self.label {
            gradient = gradient.label(label);
        }
        if self.measured == Some(false) {
            gradient = gradient.unmeasured();
        }
        if self.scaled == Some(false) {
            gradient = gradient.unscaled();
        }
        if let Some(part) = self.part {
            gradient = gradient.part(part);
        }
        if let Some(parameter) = &self.parameter {
            gradient = gradient.parameter(parameter.on(buffers));
        }
        if let Some(Partials { buffer, elements, byte_offset }) = self.partials {
            let partials = plan::Partials::new(&buffers[buffer], elements);
            gradient = gradient.partials(partials.offset(byte_offset.unwrap_or(0)));
        }
        gradient
    }
}

impl Parameter {
    fn on<'a>(&self, buffers: &'a [Buffer]) -> plan::Parameter<'a, Buffer> {
        let buffer = &buffers[self.buffer];
        let dtype = dtype(self.dtype.as_deref());
        plan::Parameter::new(buffer, dtype).bytes(bytes(buffer, dtype, self.byte_offset, self.length))
    }
}

fn dtype(name: Option<&str>) -> DType {
    name.and_then(|name| name.parse().ok()).unwrap_or(DType::F32)
}

/// The range of `length` elements, or of all that follow the offset.
fn bytes(buffer: &Buffer, dtype: DType, offset: Option<u64>, length: Option<u64>) -> std::ops::Range<u64> {
    let start = offset.unwrap_or(0);
    // A saturated end is past the end of every buffer, which is an error.
    let end = length.map_or(buffer.size, |length| start.saturating_add(length.saturating_mul(dtype.size())));
    start..end
}
