//! The tiles of gradients whose columns have their own norms.
//!
//! Such a gradient is cut into blocks of consecutive rows. A block is a chunk: its elements are consecutive. In the norm pass, a
//! tile is a block of up to 256 of its columns.

use super::{Chunk, Tiles, elements_per_vector, to_u32, to_usize};
use crate::kernels::tables::{ColumnTile, Tile, block_rows};
use crate::kernels::{Alignment, TileFormat, WORKGROUP_SIZE};

/// The number of table entries that a column tile takes.
pub(super) const ENTRIES: usize = size_of::<ColumnTile>() / size_of::<Tile>();

/// Returns the number of blocks of a gradient with `len` elements.
pub(super) fn blocks(len: u64, columns: u64) -> u64 {
    (len / columns).div_ceil(block_rows(columns))
}

/// The tiles of the norm pass in one window, as table entries.
pub(super) fn norm_tiles(chunks: &[Chunk], offset: u64) -> Tiles {
    let mut tiles = Tiles::new();
    for chunk in chunks.iter().filter(|chunk| chunk.columns > 1) {
        let Some(partial) = chunk.partial else { continue };
        let format = TileFormat { alignment: Alignment::Element, dtype: chunk.dtype };
        let entries = tiles.entry((chunk.part, format)).or_default();
        let first = chunk.start - offset / chunk.dtype.size();
        for column in (0..chunk.columns).step_by(WORKGROUP_SIZE as usize) {
            entries.extend(entries_of(ColumnTile {
                first: to_u32(first + column),
                count: to_u32((chunk.columns - column).min(WORKGROUP_SIZE.into())),
                target_index: to_u32(partial as u64 + column * chunk.blocks),
                columns: to_u32(chunk.columns),
                extent: to_u32(chunk.len / chunk.columns),
                target_stride: to_u32(chunk.blocks),
                ..ColumnTile::default()
            }));
        }
    }
    tiles
}

/// The tiles of the elementwise pass in one window, as table entries; cut as those of other gradients are.
pub(super) fn apply_tiles(chunks: &[Chunk], offset: u64, tile_elements: u64) -> Tiles {
    let mut tiles = Tiles::new();
    let runs = chunks.chunk_by(Chunk::continues).filter(|run| run[0].scaled && run[0].columns > 1);
    for run in runs {
        let Chunk { dtype, segment, columns, origin, .. } = run[0];
        let base = offset / dtype.size();
        let mut push = |alignment, from: u64, to: u64| {
            if from < to {
                tiles.entry((0, TileFormat { alignment, dtype })).or_default().extend(entries_of(
                    ColumnTile {
                        first: to_u32(from),
                        count: to_u32(to - from),
                        target_index: to_u32(segment as u64),
                        columns: to_u32(columns),
                        extent: to_u32((base + from - origin) % columns),
                        ..ColumnTile::default()
                    },
                ));
            }
        };
        let (start, end) = (run[0].start - base, run[run.len() - 1].start + run[run.len() - 1].len - base);
        let vector = elements_per_vector(dtype);
        let head = start.next_multiple_of(vector).min(end);
        let tail = (end / vector * vector).max(head);
        push(Alignment::Element, start, head);
        for from in (head..tail).step_by(to_usize(tile_elements)) {
            push(Alignment::Vector, from, tail.min(from + tile_elements));
        }
        push(Alignment::Element, tail, end);
    }
    tiles
}

/// Reverses the order of column tiles in their table entries.
pub(super) fn reverse(entries: &mut [Tile]) {
    entries.reverse();
    entries.chunks_exact_mut(ENTRIES).for_each(<[Tile]>::reverse);
}

/// Moves the partials of a tile of the norm pass to consecutive places from `place`. Returns their indices before.
pub(super) fn move_partials(entries: &mut [Tile], place: usize) -> impl Iterator<Item = usize> {
    let mut tile = tile_of(entries);
    let ColumnTile { count, target_index, target_stride, .. } = tile;
    tile.target_index = to_u32(place as u64);
    tile.target_stride = 1;
    entries.copy_from_slice(&entries_of(tile));
    (0..count as usize).map(move |column| target_index as usize + column * target_stride as usize)
}

fn entries_of(tile: ColumnTile) -> [Tile; ENTRIES] {
    bytemuck::cast(tile)
}

fn tile_of(entries: &[Tile]) -> ColumnTile {
    bytemuck::pod_read_unaligned(bytemuck::cast_slice(entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_may_have_fewer_rows() {
        assert_eq!([0, 6, 512, 514, 1024].map(|len| blocks(len, 2)), [0, 1, 1, 2, 2]);
    }

    #[test]
    fn moved_partials_are_consecutive() {
        let tile = ColumnTile { count: 3, target_index: 10, target_stride: 4, ..ColumnTile::default() };
        let mut entries = entries_of(tile);
        assert_eq!(move_partials(&mut entries, 7).collect::<Vec<_>>(), [10, 14, 18]);
        assert_eq!(tile_of(&entries), ColumnTile { target_index: 7, target_stride: 1, ..tile });
    }

    #[test]
    fn reversal_keeps_the_entries_of_a_tile_in_order() {
        let tiles = [1, 2, 3].map(|first| ColumnTile { first, columns: 10 * first, ..ColumnTile::default() });
        let mut entries = tiles.map(entries_of).concat();
        reverse(&mut entries);
        let reversed: Vec<_> = entries.chunks_exact(ENTRIES).map(tile_of).collect();
        assert_eq!(reversed, [tiles[2], tiles[1], tiles[0]]);
    }
}
