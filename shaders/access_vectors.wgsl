// Reading a tile whose first word and length are multiples of four: one 16-byte load a vector.
//
// Interface: `load_to_end`. Needs the slots of vectors (gpu/slots.rs), tile.wgsl.

// The vector at word `at` of the tile; zeros past its end.
fn load_to_end(tile: Tile, at: u32) -> vec4<u32> {
    if (at >= tile.count) {
        return vec4<u32>();
    }
    return load(tile.slot, tile.first + at);
}
