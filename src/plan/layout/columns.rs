//! The tiles of gradients whose columns have their own norms.
//!
//! Such a gradient is cut into blocks of consecutive rows. A block is a chunk: its elements are consecutive. In the norm pass, a
//! tile is a block of up to 256 of its columns.

use super::{Chunk, to_u32};
use crate::kernels::WORKGROUP_SIZE;
use crate::kernels::tables::{ColumnTile, Tile, block_rows};

/// The number of table entries that a column tile takes.
pub(super) const ENTRIES: usize = size_of::<ColumnTile>() / size_of::<Tile>();

/// Returns the number of blocks of a gradient with `len` elements.
pub(super) fn blocks(len: u64, columns: u64) -> u64 {
    (len / columns).div_ceil(block_rows(columns))
}

/// Cuts a chunk into tiles of the norm pass. `first` is its first element in the window.
pub(super) fn cut(chunk: &Chunk, first: u64, partial: usize, mut push: impl FnMut([Tile; ENTRIES])) {
    for column in (0..chunk.columns).step_by(WORKGROUP_SIZE as usize) {
        push(entries_of(ColumnTile {
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

/// A tile of the elementwise pass that begins in column `column` of `columns`.
pub(super) fn from_column(tile: Tile, column: u64, columns: u64) -> [Tile; ENTRIES] {
    let Tile { first, count, target_index, .. } = tile;
    let (columns, extent) = (to_u32(columns), to_u32(column));
    entries_of(ColumnTile { first, count, target_index, columns, extent, ..ColumnTile::default() })
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
