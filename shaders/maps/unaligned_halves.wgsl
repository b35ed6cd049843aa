// Maps a tile of 16-bit elements in place, element by element: the edges of a gradient that do not fill a vector.
//
// The other half of a word may belong to another gradient whose edge is written at the same time, so each half is replaced
// by an atomic compare-exchange of its word.
//
// provides: map_tile
// requires: stage, tile, slots, elements
// binds: tiles
// constants: WORKGROUP_SIZE

fn map_tile(index: u32, lane: u32) {
    if (index >= arrayLength(&tiles) || is_identity(tiles[index].target_index)) {
        return;
    }
    let tile = tiles[index];
    for (var at = lane; at < tile.count; at += WORKGROUP_SIZE) {
        map_half(tile, tile.first + at);
    }
}

fn map_half(tile: Tile, element: u32) {
    let word = element / 2u;
    let shift = 16u * (element % 2u);
    let old_value = vec4(widen_element(load_atomic(tile.slot, word), element % 2u));
    let new_value = map_values(old_value, tile.target_index);
    // This also preserves the bits of a NaN.
    if (new_value.x == old_value.x) {
        return;
    }
    let half = narrow(new_value).x << shift;
    loop {
        let old = load_atomic(tile.slot, word);
        if (compare_exchange(tile.slot, word, old, (old & ~(0xffffu << shift)) | half)) {
            break;
        }
    }
}
