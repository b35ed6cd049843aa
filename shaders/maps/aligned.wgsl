// Maps a tile of whole vectors in place. Unchanged vectors are not written back.
//
// provides: map_tile
// requires: stage, tile, slots, elements
// binds: tiles
// constants: STRIDE

fn map_tile(index: u32, lane: u32) {
    if (index >= arrayLength(&tiles) || is_identity(tiles[index].target_index)) {
        return;
    }
    let tile = tiles[index];
    let target_index = tile.target_index;
    var at = ELEMENTS_PER_VECTOR * lane;
    // Four vectors at a time, with their loads in flight together. Tiles without a fast path are rare and use the tail loop.
    for (var blocks = select(0u, tile.count / (4u * STRIDE), has_fast_path(target_index)); blocks > 0u; blocks -= 1u) {
        let word = (tile.first + at) / ELEMENTS_PER_WORD;
        let old = load_vectors(tile.slot, word, STRIDE / ELEMENTS_PER_WORD);
        let new_block = Block(
            map_vector_fast(old.v0, target_index),
            map_vector_fast(old.v1, target_index),
            map_vector_fast(old.v2, target_index),
            map_vector_fast(old.v3, target_index),
        );
        store_vectors(tile.slot, word, STRIDE / ELEMENTS_PER_WORD, old, new_block);
        at += 4u * STRIDE;
    }
    for (; at < tile.count; at += STRIDE) {
        let word = (tile.first + at) / ELEMENTS_PER_WORD;
        let old = load_vector(tile.slot, word);
        store_vector(tile.slot, word, old, map_vector(old, target_index));
    }
}
