//! Where gradients lie.

use gradclip::DType;

use crate::common::typed::{Halves, size};

/// The type and the number of elements of each gradient.
pub(crate) type Extents<'a> = &'a [(DType, usize)];

/// Every gradient in a buffer of its own.
pub(crate) fn separate(extents: Extents<'_>) -> Halves {
    let lens: Vec<_> = extents.iter().map(|&(dtype, len)| len * size(dtype)).collect();
    // A buffer ends with a whole word.
    let buffers = lens.iter().map(|len| len.next_multiple_of(2)).collect();
    Halves { spans: lens.into_iter().map(|len| 0..len).enumerate().collect(), buffers }
}

/// All in one buffer, each at a multiple of 16 bytes.
pub(crate) fn arena(extents: Extents<'_>) -> Halves {
    let mut end = 0_usize;
    let place = |&(dtype, len): &(DType, usize)| {
        let start = end.next_multiple_of(8);
        end = start + len * size(dtype);
        (0, start..end)
    };
    let spans = extents.iter().map(place).collect();
    Halves { spans, buffers: vec![end.next_multiple_of(2)] }
}

/// All in one buffer, the last one first, each at an odd element with guards around it.
pub(crate) fn packed(extents: Extents<'_>) -> Halves {
    let mut end = 0_usize;
    let place = |&(dtype, len): &(DType, usize)| {
        let start = (((end + 1).div_ceil(size(dtype))) | 1) * size(dtype);
        end = start + len * size(dtype);
        (0, start..end)
    };
    let mut spans: Vec<_> = extents.iter().rev().map(place).collect();
    spans.reverse();
    Halves { spans, buffers: vec![(end + 5).next_multiple_of(2)] }
}
