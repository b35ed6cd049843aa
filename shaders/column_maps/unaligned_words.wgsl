// Maps a tile of f32 elements in place, each element by the record of its column; see maps/unaligned_words.wgsl.
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
        let old = load_word(tile.slot, tile.first + at);
        let column = (tile.extent + at) % tile.columns;
        store_word(tile.slot, tile.first + at, old, map_element(old, 0u, tile.target_index + column));
    }
}
