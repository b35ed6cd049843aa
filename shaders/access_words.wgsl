// Reading a tile that begins at any element and has any length: element by element.
//
// Interface: `load_to_end`, `block_at`. Needs the slots of words (gpu/slots.rs), tile.wgsl.

// The vector at element `at` of the tile; zeros past its end.
fn load_to_end(tile: Tile, at: u32) -> vec4<u32> {
    return vec4<u32>(
        load_word_to_end(tile, at),
        load_word_to_end(tile, at + PER_WORD),
        load_word_to_end(tile, at + 2u * PER_WORD),
        load_word_to_end(tile, at + 3u * PER_WORD),
    );
}

// As many elements as a word holds.
fn load_word_to_end(tile: Tile, at: u32) -> u32 {
    var word = 0u;
    for (var index = 0u; index < PER_WORD; index += 1u) {
        if (at + index < tile.count) {
            let element = tile.first + at + index;
            let bits = load_word(tile.slot, element / PER_WORD) >> (32u / PER_WORD * (element % PER_WORD));
            word |= (bits & (0xffffffffu >> (32u - 32u / PER_WORD))) << (32u / PER_WORD * index);
        }
    }
    return word;
}

// Four vectors from element `at`, all inside the tile.
fn block_at(tile: Tile, at: u32) -> Block {
    return Block(
        load_to_end(tile, at),
        load_to_end(tile, at + STRIDE),
        load_to_end(tile, at + 2u * STRIDE),
        load_to_end(tile, at + 3u * STRIDE),
    );
}
