// Reading a tile whose first element is aligned to a vector and that is made of whole vectors: 16 bytes a load.
//
// Interface: `load_to_end`, `block_at`. Needs the slots of vectors (gpu/slots.rs), tile.wgsl.

// The vector at element `at` of the tile; zeros past its end.
fn load_to_end(tile: Tile, at: u32) -> vec4<u32> {
    if (at >= tile.count) {
        return vec4<u32>();
    }
    return load(tile.slot, (tile.first + at) / PER_WORD);
}

// Four vectors from element `at`, all inside the tile.
fn block_at(tile: Tile, at: u32) -> Block {
    return load_block(tile.slot, (tile.first + at) / PER_WORD, STRIDE / PER_WORD);
}
