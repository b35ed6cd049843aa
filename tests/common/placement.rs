//! Places gradients in buffers, with guards around them.
//!
//! Offsets and lengths are in units of two bytes, so that a gradient of any type can start at any element.

use std::ops::Range;

use gradclip::wgpu;
use gradclip::{DType, Gradient};
use half::{bf16, f16};

use super::gpu::Gpu;

/// The type and the number of elements of a gradient.
pub(crate) type Extent = (DType, usize);

/// The index of a buffer, and a range of units in it.
pub(crate) type Span = (usize, Range<usize>);

/// The content of all units outside the gradients: a large number in every type. A norm that includes a guard is wrong,
/// and scaling or clamping changes it.
pub(crate) const GUARD: u16 = 0xfbfe;

/// Returns the number of units of an element.
pub(crate) fn size(dtype: DType) -> usize {
    if dtype == DType::F32 { 2 } else { 1 }
}

/// Returns the extents of gradients of f32.
pub(crate) fn extents(gradients: &[Vec<f32>]) -> Vec<Extent> {
    gradients.iter().map(|gradient| (DType::F32, gradient.len())).collect()
}

/// Writes elements in the format of a type.
pub(crate) fn store(dtype: DType, elements: &[f32], units: &mut [u16]) {
    let both = units.iter_mut().zip(elements);
    match dtype {
        DType::F16 => both.for_each(|(unit, &x)| *unit = f16::from_f32(x).to_bits()),
        DType::BF16 => both.for_each(|(unit, &x)| *unit = bf16::from_f32(x).to_bits()),
        _ => units.copy_from_slice(bytemuck::cast_slice(elements)),
    }
}

/// Reads elements in the format of a type.
pub(crate) fn load(dtype: DType, units: &[u16]) -> Vec<f32> {
    match dtype {
        DType::F16 => units.iter().map(|&unit| f16::from_bits(unit).to_f32()).collect(),
        DType::BF16 => units.iter().map(|&unit| bf16::from_bits(unit).to_f32()).collect(),
        _ => bytemuck::pod_collect_to_vec(units),
    }
}

/// The span of each gradient, and the length of each buffer.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    pub(crate) spans: Vec<Span>,
    pub(crate) buffers: Vec<usize>,
}

impl Placement {
    /// Creates empty buffers.
    pub(crate) fn empty(buffers: usize) -> Self {
        Self { spans: Vec::new(), buffers: vec![0; buffers] }
    }

    /// Appends a gradient to a buffer, at `start` rounded up to a multiple of the element size.
    pub(crate) fn extend(&mut self, buffer: usize, start: usize, (dtype, len): Extent) -> Span {
        let start = start.next_multiple_of(size(dtype));
        self.buffers[buffer] = start + len * size(dtype);
        (buffer, start..self.buffers[buffer])
    }

    /// Pads every buffer by `units` units, and to a whole word.
    pub(crate) fn padded(mut self, units: usize) -> Self {
        self.buffers.iter_mut().for_each(|len| *len = (*len + units).next_multiple_of(2));
        self
    }

    /// Places each gradient in a separate buffer.
    pub(crate) fn separate(extents: &[Extent]) -> Self {
        let mut placement = Self::empty(extents.len());
        placement.spans =
            extents.iter().enumerate().map(|(index, &extent)| placement.extend(index, 0, extent)).collect();
        placement.padded(0)
    }

    /// Places all gradients in one buffer. `start` maps the end of the previous gradient, and the size of an element,
    /// to the start of the next gradient.
    fn in_one_buffer(extents: &[Extent], start: impl Fn(usize, usize) -> usize) -> Self {
        let mut placement = Self::empty(1);
        for &extent in extents {
            let span = placement.extend(0, start(placement.buffers[0], size(extent.0)), extent);
            placement.spans.push(span);
        }
        placement.padded(0)
    }

    /// Places all gradients in one buffer, each at a multiple of 16 bytes.
    pub(crate) fn arena(extents: &[Extent]) -> Self {
        Self::in_one_buffer(extents, |end, _| end.next_multiple_of(8))
    }

    /// Places all gradients in one buffer without gaps.
    pub(crate) fn adjacent(extents: &[Extent]) -> Self {
        Self::in_one_buffer(extents, |end, _| end)
    }

    /// Places all gradients in one buffer, each with one guard before it.
    pub(crate) fn spaced(extents: &[Extent]) -> Self {
        Self::in_one_buffer(extents, |end, _| end + 1)
    }

    /// Places all gradients in one buffer in reverse order, each at an odd element with guards around it.
    pub(crate) fn packed(extents: &[Extent]) -> Self {
        let reversed: Vec<_> = extents.iter().rev().copied().collect();
        let mut placement =
            Self::in_one_buffer(&reversed, |end, size| ((end + 1).div_ceil(size) | 1) * size).padded(5);
        placement.spans.reverse();
        placement
    }
}

impl Placement {
    /// Returns the contents of the buffers. `guards` is repeated over all units outside the gradients.
    pub(crate) fn contents(&self, guards: &[u16], dtypes: &[DType], gradients: &[Vec<f32>]) -> Vec<Vec<u16>> {
        let guarded = |&len: &usize| guards.iter().copied().cycle().take(len).collect::<Vec<_>>();
        let mut contents: Vec<_> = self.buffers.iter().map(guarded).collect();
        for (((buffer, units), gradient), &dtype) in self.spans.iter().zip(gradients).zip(dtypes) {
            store(dtype, gradient, &mut contents[*buffer][units.clone()]);
        }
        contents
    }

    /// Returns the gradients in the contents of the buffers.
    ///
    /// # Panics
    ///
    /// If a guard has changed.
    #[track_caller]
    pub(crate) fn gradients_in(
        &self,
        guards: &[u16],
        dtypes: &[DType],
        contents: &[Vec<u16>],
    ) -> Vec<Vec<f32>> {
        for (buffer, units) in contents.iter().enumerate() {
            if let Some(at) = self.changed_guard(guards, buffer, units) {
                panic!(
                    "unit {at} of buffer {buffer} is outside all gradients, but became {:#06x}",
                    units[at]
                );
            }
        }
        let gradient =
            |((buffer, units), &dtype): (&Span, &DType)| load(dtype, &contents[*buffer][units.clone()]);
        self.spans.iter().zip(dtypes).map(gradient).collect()
    }

    fn changed_guard(&self, guards: &[u16], buffer: usize, units: &[u16]) -> Option<usize> {
        let spans = self.spans.iter().filter(|span| span.0 == buffer).map(|span| span.1.clone());
        let rest = units.len()..units.len();
        let mut spans: Vec<_> = spans.chain(std::iter::once(rest)).collect();
        spans.sort_unstable_by_key(|span| span.start);
        let mut end = 0;
        spans.into_iter().find_map(|span| {
            let changed = (end..span.start).find(|&at| units[at] != guards[at % guards.len()]);
            end = end.max(span.end);
            changed
        })
    }
}

impl Gpu {
    /// Uploads gradients of f32 with guards around them.
    pub(crate) fn place(&self, placement: &Placement, gradients: &[Vec<f32>]) -> Placed {
        self.place_typed(placement, &vec![DType::F32; gradients.len()], gradients)
    }

    /// Uploads gradients of f32 with the placement [`Placement::packed`].
    pub(crate) fn place_packed(&self, gradients: &[Vec<f32>]) -> Placed {
        self.place(&Placement::packed(&extents(gradients)), gradients)
    }

    /// Uploads gradients of any types with guards around them.
    pub(crate) fn place_typed(
        &self,
        placement: &Placement,
        dtypes: &[DType],
        gradients: &[Vec<f32>],
    ) -> Placed {
        self.place_beside(&[GUARD], placement, dtypes, gradients)
    }

    /// Uploads gradients with other guards. `guards` is repeated over all units outside the gradients.
    pub(crate) fn place_beside(
        &self,
        guards: &[u16],
        placement: &Placement,
        dtypes: &[DType],
        gradients: &[Vec<f32>],
    ) -> Placed {
        let contents = placement.contents(guards, dtypes, gradients);
        let buffers = contents.iter().map(|contents| self.buffer_of(contents)).collect();
        Placed { placement: placement.clone(), dtypes: dtypes.to_vec(), guards: guards.to_vec(), buffers }
    }
}

/// Gradients in their buffers.
#[derive(Debug)]
pub(crate) struct Placed {
    placement: Placement,
    dtypes: Vec<DType>,
    guards: Vec<u16>,
    buffers: Vec<wgpu::Buffer>,
}

impl Placed {
    /// Returns the gradients. A gradient that fills its buffer has the default range.
    pub(crate) fn gradients(&self) -> Vec<Gradient<'_>> {
        let gradient = |((buffer, units), &dtype): (&Span, &DType)| {
            let whole = Gradient::new(&self.buffers[*buffer], dtype);
            if *units == (0..self.placement.buffers[*buffer]) {
                whole
            } else {
                whole.elements(elements(units, dtype))
            }
        };
        self.placement.spans.iter().zip(&self.dtypes).map(gradient).collect()
    }

    /// Returns the buffer of a gradient, and its elements there.
    pub(crate) fn elements_of(&self, gradient: usize) -> (&wgpu::Buffer, Range<u64>) {
        let (buffer, units) = &self.placement.spans[gradient];
        (&self.buffers[*buffer], elements(units, self.dtypes[gradient]))
    }

    /// Reads the gradients back.
    ///
    /// # Panics
    ///
    /// If a guard has changed.
    #[track_caller]
    pub(crate) fn read(&self, gpu: &Gpu) -> Vec<Vec<f32>> {
        let contents: Vec<Vec<u16>> = self.buffers.iter().map(|buffer| gpu.read(buffer)).collect();
        self.placement.gradients_in(&self.guards, &self.dtypes, &contents)
    }
}

fn elements(units: &Range<usize>, dtype: DType) -> Range<u64> {
    (units.start / size(dtype)) as u64..(units.end / size(dtype)) as u64
}
