//! Computes the layout of a clip: the gradients and the tiles of each dispatch. It does not use a device.

use std::ops::Range;

use bytemuck::cast_slice;
use gradclip::DType;
use gradclip::kernels::tables::{ColumnTile, Tile, block_rows, tile_elements};
use gradclip::kernels::{Alignment, TileFormat, VECTOR_BYTES, WORKGROUP_SIZE};

use crate::gradients::Split;

/// The properties of a gradient or a parameter that determine the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GradientShape {
    /// The number of its elements.
    pub(crate) count: usize,
    pub(crate) dtype: DType,
    /// The segment of its first unit. Each row or column has its own.
    pub(crate) segment: usize,
    /// The number of its units divides `count`.
    pub(crate) split: Split,
    /// Whether it is a parameter, which is measured and not changed.
    pub(crate) is_parameter: bool,
}

impl GradientShape {
    fn format(self) -> TileFormat {
        // CubeCL aligns the start of a tensor to more than a vector.
        let has_whole_vectors = (self.run_length() as u64 * self.dtype.size()).is_multiple_of(VECTOR_BYTES);
        let alignment = if has_whole_vectors { Alignment::Vector } else { Alignment::Element };
        TileFormat { alignment, dtype: self.dtype }
    }

    /// Returns the number of elements that lie in a run: a row, or all elements.
    const fn run_length(self) -> usize {
        match self.split {
            Split::Rows(rows) => self.count / rows,
            Split::Whole | Split::Columns(_) => self.count,
        }
    }

    /// Returns the number of partials of each unit.
    fn partials(self, tile: usize) -> usize {
        match self.split {
            Split::Columns(columns) => (self.count / columns).div_ceil(rows_in_block(columns)),
            Split::Whole | Split::Rows(_) => self.run_length().div_ceil(tile),
        }
    }

    const fn has_columns(self) -> bool {
        matches!(self.split, Split::Columns(_))
    }
}

/// Returns the number of rows in a block of a tensor that is split into columns, as on gradclip's wgpu path.
fn rows_in_block(columns: usize) -> usize {
    usize::try_from(block_rows(columns as u64)).unwrap_or(usize::MAX)
}

/// The tiles of one pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tiles {
    Runs(Vec<Tile>),
    /// Of tensors that are split into columns.
    Columns(Vec<ColumnTile>),
}

impl Tiles {
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Runs(tiles) => tiles.len(),
            Self::Columns(tiles) => tiles.len(),
        }
    }

    /// Returns the contents of their buffer.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Runs(tiles) => cast_slice(tiles),
            Self::Columns(tiles) => cast_slice(tiles),
        }
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
    pub(super) norm_tiles: Tiles,
    /// The tiles of the elementwise pass, whose targets are segments. Without columns, they cover the same elements as
    /// the tiles of the norm pass.
    pub(super) elementwise_tiles: Tiles,
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
        for tensors in &mut tensors_of[shape.segment..shape.segment + shape.split.units()] {
            tensors.push(index);
        }
    }
    // The first partial of each unit of each tensor.
    let mut first_partials: Vec<Vec<usize>> = vec![Vec::new(); shapes.len()];
    for tensors in tensors_of {
        let first_of_segment = layout.gradient_of_partial.len();
        for index in tensors {
            first_partials[index].push(layout.gradient_of_partial.len());
            let partials = shapes[index].partials(tile);
            layout.gradient_of_partial.extend(std::iter::repeat_n(narrow(index), partials));
        }
        layout.segments.push(first_of_segment..layout.gradient_of_partial.len());
    }
    for ((range, firsts), shape) in layout.gradients.iter_mut().zip(&first_partials).zip(shapes) {
        // The units of a tensor are consecutive.
        if let [first, .., last] | [first @ last] = firsts[..] {
            *range = first..last + shape.partials(tile);
        }
    }

    let mut order: Vec<usize> = (0..shapes.len()).filter(|&index| shapes[index].count > 0).collect();
    let class = |index: usize| {
        let shape = shapes[index];
        (shape.is_parameter, shape.has_columns(), shape.format(), shape.count < LARGE)
    };
    order.sort_by_key(|&index| class(index)); // stable
    for alike in order.chunk_by(|&a, &b| class(a) == class(b)) {
        let max_slots = if shapes[alike[0]].count < LARGE { max_slots } else { max_slots.min(LARGE_SLOTS) };
        for slots in alike.chunks(max_slots.max(1)) {
            layout.batches.push(batch(shapes, slots, tile, &first_partials));
        }
    }
    layout
}

/// Lays out one dispatch of the tensors in `slots`, all of one format, and all with columns or none. `first_partials`
/// holds the first partial of each unit of each tensor.
fn batch(shapes: &[GradientShape], slots: &[usize], tile: usize, first_partials: &[Vec<usize>]) -> Batch {
    let first = shapes[slots[0]];
    let tensors =
        slots.iter().enumerate().map(|(slot, &index)| (slot, shapes[index], &first_partials[index]));
    let (norm_tiles, elementwise_tiles) = if first.has_columns() {
        let (mut norm_tiles, mut elementwise_tiles) = (Vec::new(), Vec::new());
        for (slot, shape, first_partials) in tensors {
            norm_tiles.extend(column_blocks(slot, shape, first_partials[0]));
            elementwise_tiles.extend(column_runs(slot, shape, tile));
        }
        (Tiles::Columns(norm_tiles), Tiles::Columns(elementwise_tiles))
    } else {
        let (mut norm_tiles, mut elementwise_tiles) = (Vec::new(), Vec::new());
        for (slot, shape, first_partials) in tensors {
            let length = shape.run_length();
            for (row, &first_partial) in first_partials.iter().enumerate() {
                for (first, partial) in (0..length).step_by(tile).zip(first_partial..) {
                    let norm_tile = Tile {
                        slot: narrow(slot),
                        first: narrow(row * length + first),
                        count: narrow(tile.min(length - first)),
                        target_index: narrow(partial),
                    };
                    norm_tiles.push(norm_tile);
                    elementwise_tiles.push(Tile { target_index: narrow(shape.segment + row), ..norm_tile });
                }
            }
        }
        (Tiles::Runs(norm_tiles), Tiles::Runs(elementwise_tiles))
    };
    let format = first.format();
    Batch { format, is_parameters: first.is_parameter, slots: slots.to_vec(), norm_tiles, elementwise_tiles }
}

/// Returns the tiles of the norm pass of a tensor that is split into columns: for each block of rows, tiles of up to
/// [`WORKGROUP_SIZE`] columns. The partials of a column are consecutive, and so are the columns.
fn column_blocks(slot: usize, shape: GradientShape, first_partial: usize) -> Vec<ColumnTile> {
    let columns = shape.split.units();
    let rows = shape.count / columns;
    let block = rows_in_block(columns);
    let blocks = rows.div_ceil(block);
    let mut tiles = Vec::new();
    for (first_row, partial) in (0..rows).step_by(block).zip(first_partial..) {
        tiles.extend((0..columns).step_by(WORKGROUP_SIZE as usize).map(|column| ColumnTile {
            slot: narrow(slot),
            first: narrow(first_row * columns + column),
            count: narrow(columns - column).min(WORKGROUP_SIZE),
            target_index: narrow(partial + column * blocks),
            slot_again: narrow(slot),
            columns: narrow(columns),
            extent: narrow(block.min(rows - first_row)),
            target_stride: narrow(blocks),
        }));
    }
    tiles
}

/// Returns the tiles of the elementwise pass of a tensor that is split into columns: runs of elements.
fn column_runs(slot: usize, shape: GradientShape, tile: usize) -> impl Iterator<Item = ColumnTile> {
    let columns = shape.split.units();
    (0..shape.count).step_by(tile).map(move |first| ColumnTile {
        slot: narrow(slot),
        first: narrow(first),
        count: narrow(tile.min(shape.count - first)),
        target_index: narrow(shape.segment),
        slot_again: narrow(slot),
        columns: narrow(columns),
        extent: narrow(first % columns),
        target_stride: 0,
    })
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
        GradientShape { count, dtype, segment, split: Split::Whole, is_parameter: false }
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

    /// Gradients with rows and columns, and their parameters.
    fn split_shapes() -> Vec<GradientShape> {
        let f32s = |count, split, segment| GradientShape { split, ..shape(count, DType::F32, segment) };
        let gradients = [
            f32s(3 * 4100, Split::Rows(3), 0),
            f32s(9, Split::Whole, 3),
            GradientShape { dtype: DType::F16, ..f32s(5 * 7, Split::Rows(5), 4) },
            f32s(4 * 8, Split::Rows(4), 9),
            f32s(2 * LARGE, Split::Rows(2), 13),
            f32s(0, Split::Whole, 15),
            f32s(700 * 3, Split::Columns(3), 16),
            f32s(2 * 600, Split::Columns(600), 19),
            GradientShape { dtype: DType::BF16, ..f32s(7 * 5, Split::Columns(5), 619) },
            f32s(300 * 257, Split::Columns(257), 624),
        ];
        let parameters = gradients.map(|shape| GradientShape {
            segment: 881 + shape.segment,
            is_parameter: true,
            ..shape
        });
        [gradients, parameters].concat()
    }

    /// Returns the elements of each tile, with the index of its target.
    fn targets(tiles: &Tiles, is_norm_pass: bool) -> Vec<(u32, Vec<(u32, u32)>)> {
        match tiles {
            Tiles::Runs(tiles) => {
                let elements = |tile: &Tile| {
                    let target = tile.target_index;
                    (tile.first..tile.first + tile.count).map(move |at| (at, target))
                };
                tiles.iter().map(|tile| (tile.slot, elements(tile).collect())).collect()
            }
            Tiles::Columns(tiles) => {
                let elements = |tile: &ColumnTile| -> Vec<_> {
                    assert_eq!(tile.slot, tile.slot_again);
                    if is_norm_pass {
                        assert!(tile.count <= WORKGROUP_SIZE);
                        let cells =
                            (0..tile.count).flat_map(|column| (0..tile.extent).map(move |row| (column, row)));
                        cells
                            .map(|(column, row)| {
                                let target = tile.target_index + column * tile.target_stride;
                                (tile.first + row * tile.columns + column, target)
                            })
                            .collect()
                    } else {
                        let column = |at| (tile.extent + at) % tile.columns;
                        (0..tile.count).map(|at| (tile.first + at, tile.target_index + column(at))).collect()
                    }
                };
                tiles.iter().map(|tile| (tile.slot, elements(tile))).collect()
            }
        }
    }

    /// Returns the unit of an element.
    fn unit_of(shape: GradientShape, element: u32) -> usize {
        match shape.split {
            Split::Whole => 0,
            Split::Rows(rows) => element as usize / (shape.count / rows),
            Split::Columns(columns) => element as usize % columns,
        }
    }

    #[test]
    fn tiles_cover_every_element_once_and_name_the_partial_and_the_segment_of_its_unit() {
        for (max_slots, (shapes, segments)) in
            [1, 2, 3, 32].into_iter().flat_map(|max| [(max, (shapes(), 2)), (max, (split_shapes(), 2 * 881))])
        {
            let layout = lay_out(&shapes, segments, max_slots);
            assert_eq!(layout.segments.len(), segments);
            let none = || shapes.iter().map(|shape| vec![false; shape.count]).collect::<Vec<_>>();
            let (mut measured, mut mapped) = (none(), none());
            let mut written = vec![false; layout.gradient_of_partial.len()];
            for batch in &layout.batches {
                assert!(batch.slots.len() <= max_slots);
                let slots = || batch.slots.iter().map(|&slot| shapes[slot]);
                assert!(slots().all(|shape| shape.is_parameter == batch.is_parameters));
                assert!(slots().all(|shape| shape.format() == batch.format));
                assert!(
                    slots().all(|shape| shape.has_columns() == matches!(batch.norm_tiles, Tiles::Columns(_)))
                );
                for (slot, elements) in targets(&batch.norm_tiles, true) {
                    let gradient = batch.slots[slot as usize];
                    let mut of_tile = Vec::new();
                    for (element, target) in elements {
                        let target = target as usize;
                        assert_eq!(layout.gradient_of_partial[target] as usize, gradient);
                        let segment = shapes[gradient].segment + unit_of(shapes[gradient], element);
                        assert!(layout.segments[segment].contains(&target));
                        assert!(layout.gradients[gradient].contains(&target));
                        assert!(!std::mem::replace(&mut measured[gradient][element as usize], true));
                        of_tile.push(target);
                    }
                    of_tile.dedup();
                    for target in of_tile {
                        assert!(
                            !std::mem::replace(&mut written[target], true),
                            "two tiles write one partial"
                        );
                    }
                }
                for (slot, elements) in targets(&batch.elementwise_tiles, false) {
                    let gradient = batch.slots[slot as usize];
                    for (element, target) in elements {
                        let segment = shapes[gradient].segment + unit_of(shapes[gradient], element);
                        assert_eq!(target as usize, segment);
                        assert!(!std::mem::replace(&mut mapped[gradient][element as usize], true));
                    }
                }
            }
            for covered in [measured, mapped] {
                assert!(
                    covered.iter().flatten().all(|&c| c),
                    "an element in no tile, with {max_slots} slots"
                );
            }
            assert!(written.iter().all(|&w| w), "a partial of no tile, with {max_slots} slots");
        }
    }
}
