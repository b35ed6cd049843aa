// Maps a tile of f32 elements in place, element by element: the edges of a gradient that do not fill a vector. A vector store
// there would race with writes to the memory beside the gradient.
//
// provides: map_tile
// requires: stage, tile, slots
// binds: tiles
// constants: WORKGROUP_SIZE

fn map_tile(index: u32, lane: u32) {
    if (index >= arrayLength(&tiles) || is_identity(tiles[index].target_index)) {
        return;
    }
    let tile = tiles[index];
    for (var at = lane; at < tile.count; at += WORKGROUP_SIZE) {
        let old = load_word(tile.slot, tile.first + at);
        store_word(tile.slot, tile.first + at, old, map_values(vec4(old), tile.target_index).x);
    }
}
