//! Buffers and gradients of the host. `js/src/gradient_builder.ts` has the same orders.

use gradclip::DType;
use gradclip::plan::{self, DeviceBuffer, Gradient, Parameter, Partials};

use crate::message::Request;

/// A buffer of the caller. Two are the same if they are one element of the list.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Buffer {
    index: usize,
    size: u64,
    usage: u32,
    mapped: bool,
}

impl Buffer {
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

/// Reads the list of buffers, which gradients name by their index.
pub(crate) fn buffers(request: &mut Request<'_>) -> Vec<Buffer> {
    let mut index = 0;
    request.list(|request| {
        let buffer = Buffer { index, size: request.u64(), usage: request.u32(), mapped: request.flag() };
        index += 1;
        buffer
    })
}

/// Reads a gradient.
pub(crate) fn gradient<'a, 'm: 'a>(request: &mut Request<'m>, buffers: &'a [Buffer]) -> Gradient<'a, Buffer> {
    let Place { buffer, dtype, start, end } = Place::read(request, buffers);
    let mut gradient = Gradient::new(buffer, dtype).bytes(start..end);
    if let Some(label) = request.optional(Request::text) {
        gradient = gradient.label(label);
    }
    gradient = gradient.group(request.usize());
    if !request.flag() {
        gradient = gradient.unmeasured();
    }
    if !request.flag() {
        gradient = gradient.unscaled();
    }
    gradient = gradient.rows(request.u64()).columns(request.u64());
    if let Some(part) = request.optional(Request::usize) {
        gradient = gradient.part(part);
    }
    if let Some(Place { buffer, dtype, start, end }) =
        request.optional(|request| Place::read(request, buffers))
    {
        gradient = gradient.parameter(Parameter::new(buffer, dtype).bytes(start..end));
    }
    if let Some(partials) = request
        .optional(|request| Partials::new(&buffers[request.usize()], request.u64()).offset(request.u64()))
    {
        gradient = gradient.partials(partials);
    }
    gradient
}

/// A range of a buffer.
struct Place<'a> {
    buffer: &'a Buffer,
    dtype: DType,
    start: u64,
    end: u64,
}

impl<'a> Place<'a> {
    /// Reads a buffer, an element type, a start in bytes and a length in elements. Without a length the place reaches to the end of
    /// the buffer.
    fn read(request: &mut Request<'_>, buffers: &'a [Buffer]) -> Self {
        let buffer = &buffers[request.usize()];
        let dtype = [DType::F32, DType::F16, DType::BF16][request.usize()];
        let start = request.u64();
        // A saturated end is past the end of every buffer, which is an error.
        let end = request
            .optional(Request::u64)
            .map_or(buffer.size, |length| start.saturating_add(length.saturating_mul(dtype.size())));
        Self { buffer, dtype, start, end }
    }
}
