// Loads from a tile that starts at a vector and is made of whole vectors: 16 bytes a load.
//
// provides: load_to_end, load_block
// requires: tile, slots, elements
// constants: STRIDE

// Returns the vector at element `at` of the tile; zeros past the end of the tile.
fn load_to_end(tile: Tile, at: u32) -> vec4<u32> {
    if (at >= tile.count) {
        return vec4<u32>();
    }
    return load_vector(tile.slot, (tile.first + at) / ELEMENTS_PER_WORD);
}

// Returns four vectors from element `at`, all inside the tile.
fn load_block(tile: Tile, at: u32) -> Block {
    return load_vectors(tile.slot, (tile.first + at) / ELEMENTS_PER_WORD, STRIDE / ELEMENTS_PER_WORD);
}
