//! Computes the layout of a clip: the gradients and the tiles of each dispatch. It does not use a device.

use std::ops::Range;

use gradclip::DType;
use gradclip::kernels::tables::{Tile, tile_elements};
use gradclip::kernels::{Alignment, TileFormat, VECTOR_BYTES};

/// The properties of a gradient or a parameter that determine the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GradientShape {
    /// The number of its elements.
    pub(crate) count: usize,
    pub(crate) dtype: DType,
    /// The segment of its first row. Each row has its own; without rows, the tensor is one row.
    pub(crate) segment: usize,
    /// The number of rows, which divides `count`.
    pub(crate) rows: usize,
    /// Whether it is a parameter, which is measured and not changed.
    pub(crate) is_parameter: bool,
}

impl GradientShape {
    fn format(self) -> TileFormat {
        // CubeCL aligns the start of a tensor to more than a vector.
        let has_whole_vectors = (self.row_length() as u64 * self.dtype.size()).is_multiple_of(VECTOR_BYTES);
        let alignment = if has_whole_vectors { Alignment::Vector } else { Alignment::Element };
        TileFormat { alignment, dtype: self.dtype }
    }

    const fn row_length(self) -> usize {
        self.count / self.rows
    }
}

/// The gradients that share one dispatch in each pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) format: TileFormat,
    /// Whether it holds parameters, which have no elementwise pass.
    pub(super) is_parameters: bool,
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
    /// The partials of each gradient and each parameter.
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
    let mut tensors_of = vec![Vec::new(); segments];
    for (index, shape) in shapes.iter().enumerate() {
        for tensors in &mut tensors_of[shape.segment..shape.segment + shape.rows] {
            tensors.push(index);
        }
    }
    // The first partial of each row of each tensor.
    let mut first_partials: Vec<Vec<usize>> = vec![Vec::new(); shapes.len()];
    for tensors in tensors_of {
        let first_of_segment = layout.gradient_of_partial.len();
        for index in tensors {
            first_partials[index].push(layout.gradient_of_partial.len());
            let partials = shapes[index].row_length().div_ceil(tile);
            layout.gradient_of_partial.extend(std::iter::repeat_n(narrow(index), partials));
        }
        layout.segments.push(first_of_segment..layout.gradient_of_partial.len());
    }
    for ((range, firsts), shape) in layout.gradients.iter_mut().zip(&first_partials).zip(shapes) {
        // The rows of a tensor are consecutive.
        if let [first, .., last] | [first @ last] = firsts[..] {
            *range = first..last + shape.row_length().div_ceil(tile);
        }
    }

    let mut order: Vec<usize> = (0..shapes.len()).filter(|&index| shapes[index].count > 0).collect();
    let class =
        |index: usize| (shapes[index].is_parameter, shapes[index].format(), shapes[index].count < LARGE);
    order.sort_by_key(|&index| class(index)); // stable
    for alike in order.chunk_by(|&a, &b| class(a) == class(b)) {
        let max_slots = if shapes[alike[0]].count < LARGE { max_slots } else { max_slots.min(LARGE_SLOTS) };
        for slots in alike.chunks(max_slots.max(1)) {
            layout.batches.push(batch(shapes, slots, tile, &first_partials));
        }
    }
    layout
}

/// Lays out one dispatch of the tensors in `slots`, all of one format. `first_partials` holds the first partial of each
/// row of each tensor.
fn batch(shapes: &[GradientShape], slots: &[usize], tile: usize, first_partials: &[Vec<usize>]) -> Batch {
    let mut norm_tiles = Vec::new();
    let mut elementwise_tiles = Vec::new();
    for (slot, &index) in slots.iter().enumerate() {
        let length = shapes[index].row_length();
        for (row, &first_partial) in first_partials[index].iter().enumerate() {
            for (first, partial) in (0..length).step_by(tile).zip(first_partial..) {
                let norm_tile = Tile {
                    slot: narrow(slot),
                    first: narrow(row * length + first),
                    count: narrow(tile.min(length - first)),
                    target_index: narrow(partial),
                };
                norm_tiles.push(norm_tile);
                let segment = shapes[index].segment + row;
                elementwise_tiles.push(Tile { target_index: narrow(segment), ..norm_tile });
            }
        }
    }
    let GradientShape { is_parameter: is_parameters, .. } = shapes[slots[0]];
    let format = shapes[slots[0]].format();
    Batch { format, is_parameters, slots: slots.to_vec(), norm_tiles, elementwise_tiles }
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
        let shapes: Vec<_> = counts.into_iter().map(|count| shape(count, DType::F32, 0)).collect();
        // The norm and the scale pass of each batch, and one finalize pass.
        let dispatches = |slots| 2 * lay_out(&shapes, 1, slots).batches.len() + 1;
        assert_eq!(dispatches(30), 43);
        // wgpu's default limits allow six slots.
        assert!(dispatches(6) < 2 * shapes.len());
    }

    fn shape(count: usize, dtype: DType, segment: usize) -> GradientShape {
        GradientShape { count, dtype, segment, rows: 1, is_parameter: false }
    }

    fn shapes() -> Vec<GradientShape> {
        let f32s = |count, segment| shape(count, DType::F32, segment);
        vec![
            f32s(10_000, 0),
            f32s(0, 0),
            f32s(7, 1),
            shape(4096, DType::F16, 1),
            f32s(8, 0),
            f32s(4097, 1),
            f32s(LARGE, 1),
            f32s(LARGE + 4, 0),
        ]
    }

    /// Gradients with rows, and their parameters.
    fn shapes_with_rows() -> Vec<GradientShape> {
        let f32s = |count, rows, segment| GradientShape { rows, ..shape(count, DType::F32, segment) };
        let gradients = [
            f32s(3 * 4100, 3, 0),
            f32s(9, 1, 3),
            GradientShape { dtype: DType::F16, ..f32s(5 * 7, 5, 4) },
            f32s(4 * 8, 4, 9),
            f32s(2 * LARGE, 2, 13),
            f32s(0, 1, 15),
        ];
        let parameters =
            gradients.map(|shape| GradientShape { segment: 16 + shape.segment, is_parameter: true, ..shape });
        [gradients, parameters].concat()
    }

    #[test]
    fn tiles_cover_every_element_once_and_name_the_partial_of_their_gradient() {
        for (max_slots, (shapes, segments)) in
            [1, 2, 3, 32].into_iter().flat_map(|max| [(max, (shapes(), 2)), (max, (shapes_with_rows(), 32))])
        {
            let layout = lay_out(&shapes, segments, max_slots);
            assert_eq!(layout.segments.len(), segments);
            let mut covered: Vec<Vec<bool>> = shapes.iter().map(|shape| vec![false; shape.count]).collect();
            let mut written = vec![false; layout.gradient_of_partial.len()];
            for batch in &layout.batches {
                assert!(batch.slots.len() <= max_slots);
                assert!(batch.slots.iter().all(|&slot| shapes[slot].is_parameter == batch.is_parameters));
                for (tile, elementwise) in batch.norm_tiles.iter().zip(&batch.elementwise_tiles) {
                    let gradient = batch.slots[tile.slot as usize];
                    assert_eq!(shapes[gradient].format(), batch.format);
                    let target = tile.target_index as usize;
                    assert_eq!(layout.gradient_of_partial[target] as usize, gradient);
                    let row = tile.first as usize / shapes[gradient].row_length();
                    let last = (tile.first + tile.count - 1) as usize;
                    assert_eq!(last / shapes[gradient].row_length(), row, "a tile of two rows");
                    let segment = shapes[gradient].segment + row;
                    assert!(layout.segments[segment].contains(&target));
                    assert!(layout.gradients[gradient].contains(&target));
                    assert!(!std::mem::replace(&mut written[target], true), "two tiles write one partial");
                    assert_eq!(elementwise.target_index as usize, segment);
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
