//! Computes the layout of a clip: the gradients and the tiles of each dispatch. It does not use a device.

use std::ops::Range;

use gradclip::DType;
use gradclip::kernels::tables::{Tile, tile_elements};
use gradclip::kernels::{Alignment, TileFormat, VECTOR_BYTES};

/// The properties of a gradient that determine the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GradientShape {
    /// The number of its elements.
    pub(crate) count: usize,
    pub(crate) dtype: DType,
    pub(crate) segment: usize,
}

impl GradientShape {
    fn format(self) -> TileFormat {
        // CubeCL aligns the start of a tensor to more than a vector.
        let has_whole_vectors = (self.count as u64 * self.dtype.size()).is_multiple_of(VECTOR_BYTES);
        let alignment = if has_whole_vectors { Alignment::Vector } else { Alignment::Element };
        TileFormat { alignment, dtype: self.dtype }
    }
}

/// The gradients that share one dispatch in each pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) format: TileFormat,
    /// The index of the gradient in each slot.
    pub(super) slots: Vec<usize>,
    /// The tiles of the norm pass, whose targets are partials.
    pub(super) norm_tiles: Vec<Tile>,
    /// The same tiles for the elementwise pass, whose targets are segments.
    pub(super) elementwise_tiles: Vec<Tile>,
}

/// The dispatches of a clip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) batches: Vec<Batch>,
    /// The gradient of each partial.
    pub(super) gradient_of_partial: Vec<u32>,
    /// The partials of each segment.
    pub(super) segments: Vec<Range<usize>>,
    /// The partials of each gradient.
    pub(super) gradients: Vec<Range<usize>>,
}

/// The minimum length of a large gradient, in elements. For a large gradient, selecting among many slots at every load
/// costs more than another dispatch.
const LARGE: usize = 1 << 15;

/// The maximum number of large gradients in one dispatch.
const LARGE_SLOTS: usize = 3;

/// Lays out the dispatches, each with at most `max_slots` gradients. The partials of a segment are consecutive, in the
/// order of the gradients.
pub(super) fn lay_out(shapes: &[GradientShape], segments: usize, max_slots: usize) -> Layout {
    // The tile length is the same as on gradclip's wgpu path, so the norms have the same bits.
    let tile = tile_elements(shapes.iter().map(|shape| shape.count as u64).sum());
    let tile = usize::try_from(tile).unwrap_or(usize::MAX);
    let mut layout = Layout { gradients: vec![0..0; shapes.len()], ..Layout::default() };
    let mut gradients_of = vec![Vec::new(); segments];
    for (index, shape) in shapes.iter().enumerate() {
        gradients_of[shape.segment].push((index, shape));
    }
    for gradients in gradients_of {
        let first_of_segment = layout.gradient_of_partial.len();
        for (index, shape) in gradients {
            let first = layout.gradient_of_partial.len();
            layout.gradient_of_partial.extend(std::iter::repeat_n(narrow(index), shape.count.div_ceil(tile)));
            layout.gradients[index] = first..layout.gradient_of_partial.len();
        }
        layout.segments.push(first_of_segment..layout.gradient_of_partial.len());
    }

    let mut order: Vec<usize> = (0..shapes.len()).filter(|&index| shapes[index].count > 0).collect();
    let class = |index: usize| (shapes[index].format(), shapes[index].count < LARGE);
    order.sort_by_key(|&index| class(index)); // stable
    for alike in order.chunk_by(|&a, &b| class(a) == class(b)) {
        let max_slots = if shapes[alike[0]].count < LARGE { max_slots } else { max_slots.min(LARGE_SLOTS) };
        for slots in alike.chunks(max_slots.max(1)) {
            layout.batches.push(batch(shapes, slots, tile, &layout.gradients));
        }
    }
    layout
}

/// Lays out one dispatch of the gradients in `slots`, all of one format. `partials` holds the partials of each
/// gradient.
fn batch(shapes: &[GradientShape], slots: &[usize], tile: usize, partials: &[Range<usize>]) -> Batch {
    let mut norm_tiles = Vec::new();
    let mut elementwise_tiles = Vec::new();
    for (slot, &index) in slots.iter().enumerate() {
        let GradientShape { count, segment, .. } = shapes[index];
        for (first, partial) in (0..count).step_by(tile).zip(partials[index].clone()) {
            let norm_tile = Tile {
                slot: narrow(slot),
                first: narrow(first),
                count: narrow(tile.min(count - first)),
                target_index: narrow(partial),
            };
            norm_tiles.push(norm_tile);
            elementwise_tiles.push(Tile { target_index: narrow(segment), ..norm_tile });
        }
    }
    Batch { format: shapes[slots[0]].format(), slots: slots.to_vec(), norm_tiles, elementwise_tiles }
}

/// Narrows an index for the shaders. A tensor of Burn fits into one binding, which has fewer than 2³² words.
fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transformer_of_150_tensors_takes_fewer_than_50_dispatches() {
        let mut counts = vec![2048 * 256, 128 * 256, 256, 256, 256, 256];
        for _ in 0..12 {
            counts.extend([256 * 768, 256 * 256, 256 * 1024, 1024 * 256]);
            counts.extend([768, 256, 1024, 256, 256, 256, 256, 256]);
        }
        assert_eq!(counts.len(), 150);
        let shapes: Vec<_> =
            counts.into_iter().map(|count| GradientShape { count, dtype: DType::F32, segment: 0 }).collect();
        // The norm and the scale pass of each batch, and one finalize pass.
        let dispatches = |slots| 2 * lay_out(&shapes, 1, slots).batches.len() + 1;
        assert_eq!(dispatches(30), 43);
        // wgpu's default limits allow six slots.
        assert!(dispatches(6) < 2 * shapes.len());
    }

    fn shapes() -> Vec<GradientShape> {
        let f32s = |count, segment| GradientShape { count, dtype: DType::F32, segment };
        vec![
            f32s(10_000, 0),
            f32s(0, 0),
            f32s(7, 1),
            GradientShape { count: 4096, dtype: DType::F16, segment: 1 },
            f32s(8, 0),
            f32s(4097, 1),
            f32s(LARGE, 1),
            f32s(LARGE + 4, 0),
        ]
    }

    #[test]
    fn tiles_cover_every_element_once_and_name_the_partial_of_their_gradient() {
        for max_slots in [1, 2, 3, 32] {
            let shapes = shapes();
            let layout = lay_out(&shapes, 2, max_slots);
            let mut covered: Vec<Vec<bool>> = shapes.iter().map(|shape| vec![false; shape.count]).collect();
            let mut written = vec![false; layout.gradient_of_partial.len()];
            for batch in &layout.batches {
                assert!(batch.slots.len() <= max_slots);
                for (tile, elementwise) in batch.norm_tiles.iter().zip(&batch.elementwise_tiles) {
                    let gradient = batch.slots[tile.slot as usize];
                    assert_eq!(shapes[gradient].format(), batch.format);
                    let target = tile.target_index as usize;
                    assert_eq!(layout.gradient_of_partial[target] as usize, gradient);
                    assert!(layout.segments[shapes[gradient].segment].contains(&target));
                    assert!(layout.gradients[gradient].contains(&target));
                    assert!(!std::mem::replace(&mut written[target], true), "two tiles write one partial");
                    assert_eq!(elementwise.target_index as usize, shapes[gradient].segment);
                    for element in tile.first..tile.first + tile.count {
                        assert!(!std::mem::replace(&mut covered[gradient][element as usize], true));
                    }
                }
            }
            assert!(covered.iter().flatten().all(|&c| c), "an element in no tile, with {max_slots} slots");
            assert!(written.iter().all(|&w| w), "a partial of no tile, with {max_slots} slots");
        }
    }
}
