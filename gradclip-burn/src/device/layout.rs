//! The layout of a clip: the gradients and the tiles of each dispatch. Numbers in, numbers out.

use std::ops::Range;

use gradclip::DType;
use gradclip::kernels::tables::{Tile, tile_elements};
use gradclip::kernels::{Alignment, TileFormat};

/// The shape of a gradient, as far as the layout depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GradientShape {
    pub(crate) count: usize,
    pub(crate) dtype: DType,
    pub(crate) segment: usize,
}

impl GradientShape {
    fn format(self) -> TileFormat {
        let is_aligned = (self.count as u64 * self.dtype.size()).is_multiple_of(16);
        let alignment = if is_aligned { Alignment::Vector } else { Alignment::Element };
        TileFormat { alignment, dtype: self.dtype }
    }
}

/// The gradients of one dispatch in each pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) format: TileFormat,
    /// The gradient in each slot.
    pub(super) members: Vec<usize>,
    /// The tiles of the norm pass; their targets are partials.
    pub(super) norm_tiles: Vec<Tile>,
    /// The same tiles for the elementwise pass; their targets are segments.
    pub(super) map_tiles: Vec<Tile>,
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

/// The smallest large gradient, in elements. For large gradients, selecting among many slots at every load costs more than a
/// dispatch.
const LARGE: usize = 1 << 15;

/// The most large gradients in one dispatch.
const LARGE_SLOTS: usize = 3;

/// Lays out the dispatches for these gradients, with at most `slots` gradients in each. The partials of a segment are
/// consecutive, in the order of the gradients.
pub(super) fn lay_out(shapes: &[GradientShape], segments: usize, slots: usize) -> Layout {
    // With the tiles of the wgpu path, norms have the same bits.
    let tile = tile_elements(shapes.iter().map(|shape| shape.count as u64).sum());
    let tile = usize::try_from(tile).unwrap_or(usize::MAX);
    let mut layout = Layout { gradients: vec![0..0; shapes.len()], ..Layout::default() };
    let mut members = vec![Vec::new(); segments];
    for (index, shape) in shapes.iter().enumerate() {
        members[shape.segment].push((index, shape));
    }
    for members in members {
        let first = layout.gradient_of_partial.len();
        for (index, shape) in members {
            let begin = layout.gradient_of_partial.len();
            layout.gradient_of_partial.extend(std::iter::repeat_n(narrow(index), shape.count.div_ceil(tile)));
            layout.gradients[index] = begin..layout.gradient_of_partial.len();
        }
        layout.segments.push(first..layout.gradient_of_partial.len());
    }

    let mut order: Vec<usize> = (0..shapes.len()).filter(|&index| shapes[index].count > 0).collect();
    let kind = |index: usize| (shapes[index].format(), shapes[index].count < LARGE);
    order.sort_by_key(|&index| kind(index)); // stable
    for alike in order.chunk_by(|&a, &b| kind(a) == kind(b)) {
        let most = if shapes[alike[0]].count < LARGE { slots } else { slots.min(LARGE_SLOTS) };
        for members in alike.chunks(most.max(1)) {
            let mut batch = Batch {
                format: shapes[members[0]].format(),
                members: members.to_vec(),
                norm_tiles: Vec::new(),
                map_tiles: Vec::new(),
            };
            for (slot, &index) in members.iter().enumerate() {
                let GradientShape { count, segment, .. } = shapes[index];
                for (first, partial) in (0..count).step_by(tile).zip(layout.gradients[index].clone()) {
                    let to_partial = Tile {
                        slot: narrow(slot),
                        first: narrow(first),
                        count: narrow(tile.min(count - first)),
                        target_index: narrow(partial),
                    };
                    batch.norm_tiles.push(to_partial);
                    batch.map_tiles.push(Tile { target_index: narrow(segment), ..to_partial });
                }
            }
            layout.batches.push(batch);
        }
    }
    layout
}

/// Narrows a number that the shaders index with. A tensor of Burn fits into one binding, which has less than 2³² words.
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
        // Norm, record, scale.
        let dispatches = |slots| 2 * lay_out(&shapes, 1, slots).batches.len() + 1;
        assert_eq!(dispatches(30), 43);
        // wgpu's default limits.
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
        for slots in [1, 2, 3, 32] {
            let shapes = shapes();
            let layout = lay_out(&shapes, 2, slots);
            let mut covered: Vec<Vec<bool>> = shapes.iter().map(|e| vec![false; e.count]).collect();
            let mut written = vec![false; layout.gradient_of_partial.len()];
            for batch in &layout.batches {
                assert!(batch.members.len() <= slots);
                for (tile, of_segment) in batch.norm_tiles.iter().zip(&batch.map_tiles) {
                    let gradient = batch.members[tile.slot as usize];
                    assert_eq!(shapes[gradient].format(), batch.format);
                    let target = tile.target_index as usize;
                    assert_eq!(layout.gradient_of_partial[target] as usize, gradient);
                    assert!(layout.segments[shapes[gradient].segment].contains(&target));
                    assert!(layout.gradients[gradient].contains(&target));
                    assert!(!std::mem::replace(&mut written[target], true), "a partial of two tiles");
                    assert_eq!(of_segment.target_index as usize, shapes[gradient].segment);
                    for element in tile.first..tile.first + tile.count {
                        assert!(!std::mem::replace(&mut covered[gradient][element as usize], true));
                    }
                }
            }
            assert!(covered.iter().flatten().all(|&c| c), "an element in no tile, with {slots} slots");
            assert!(written.iter().all(|&w| w), "a partial of no tile, with {slots} slots");
        }
    }
}
