// Maps a tile of 16-bit elements in place, each element by the record of its column; see maps/unaligned_halves.wgsl.
//
// provides: map_column_tile
// requires: stage, column_tile, slots
// binds: column_tiles
// constants: WORKGROUP_SIZE

fn map_column_tile(index: u32, lane: u32) {
    if (index >= arrayLength(&column_tiles)) {
        return;
    }
    let tile = column_tiles[index];
    for (var at = lane; at < tile.count; at += WORKGROUP_SIZE) {
        let column = (tile.extent + at) % tile.columns;
        map_half(tile, tile.first + at, tile.target_index + column);
    }
}

fn map_half(tile: ColumnTile, element: u32, record_number: u32) {
    let word = element / 2u;
    let shift = 16u * (element % 2u);
    let before = load_atomic(tile.slot, word);
    let half = map_element(before, element % 2u, record_number) << shift;
    if (half == (before & (0xffffu << shift))) {
        return;
    }
    loop {
        let old = load_atomic(tile.slot, word);
        if (compare_exchange(tile.slot, word, old, (old & ~(0xffffu << shift)) | half)) {
            break;
        }
    }
}
