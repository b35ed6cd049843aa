// Maps a tile of whole vectors in place, each element by the record of its column.
//
// provides: map_column_tile
// requires: stage, tile, column_tile, slots, elements
// binds: column_tiles
// constants: STRIDE

fn map_column_tile(index: u32, lane: u32) {
    if (index >= arrayLength(&column_tiles)) {
        return;
    }
    let tile = column_tiles[index];
    var at = ELEMENTS_PER_VECTOR * lane;
    // Four vectors at a time, with their loads in flight together.
    for (var blocks = tile.count / (4u * STRIDE); blocks > 0u; blocks -= 1u) {
        let word = (tile.first + at) / ELEMENTS_PER_WORD;
        let old = load_vectors(tile.slot, word, STRIDE / ELEMENTS_PER_WORD);
        let new_block = Block(
            map_vector(tile, old.v0, at),
            map_vector(tile, old.v1, at + STRIDE),
            map_vector(tile, old.v2, at + 2u * STRIDE),
            map_vector(tile, old.v3, at + 3u * STRIDE),
        );
        store_vectors(tile.slot, word, STRIDE / ELEMENTS_PER_WORD, old, new_block);
        at += 4u * STRIDE;
    }
    for (; at < tile.count; at += STRIDE) {
        let word = (tile.first + at) / ELEMENTS_PER_WORD;
        let old = load_vector(tile.slot, word);
        store_vector(tile.slot, word, old, map_vector(tile, old, at));
    }
}

fn map_vector(tile: ColumnTile, words: vec4<u32>, at: u32) -> vec4<u32> {
    var column = (tile.extent + at) % tile.columns;
    var mapped = words;
    for (var i = 0u; i < 4u; i += 1u) {
        mapped[i] = map_element(words[i], 0u, tile.target_index + column);
        column = next_column(column, tile.columns);
        if (ELEMENTS_PER_WORD == 2u) {
            mapped[i] |= map_element(words[i], 1u, tile.target_index + column) << 16u;
            column = next_column(column, tile.columns);
        }
    }
    return mapped;
}

fn next_column(column: u32, columns: u32) -> u32 {
    return select(column + 1u, 0u, column + 1u == columns);
}
