// Loads from a tile that starts at any element and has any length: element by element.
//
// provides: load_to_end, load_block
// requires: tile, slots, elements
// constants: STRIDE

// Returns the vector at element `at` of the tile; zeros past the end of the tile.
fn load_to_end(tile: Tile, at: u32) -> vec4<u32> {
    return vec4<u32>(
        load_word_to_end(tile, at),
        load_word_to_end(tile, at + ELEMENTS_PER_WORD),
        load_word_to_end(tile, at + 2u * ELEMENTS_PER_WORD),
        load_word_to_end(tile, at + 3u * ELEMENTS_PER_WORD),
    );
}

// Returns the elements from `at` that fill one word.
fn load_word_to_end(tile: Tile, at: u32) -> u32 {
    const BITS: u32 = 32u / ELEMENTS_PER_WORD;
    var word = 0u;
    for (var index = 0u; index < ELEMENTS_PER_WORD; index += 1u) {
        if (at + index < tile.count) {
            let element = tile.first + at + index;
            let bits = load_word(tile.slot, element / ELEMENTS_PER_WORD) >> (BITS * (element % ELEMENTS_PER_WORD));
            word |= (bits & (0xffffffffu >> (32u - BITS))) << (BITS * index);
        }
    }
    return word;
}

// Returns four vectors from element `at`, all inside the tile.
fn load_block(tile: Tile, at: u32) -> Block {
    return Block(
        load_to_end(tile, at),
        load_to_end(tile, at + STRIDE),
        load_to_end(tile, at + 2u * STRIDE),
        load_to_end(tile, at + 3u * STRIDE),
    );
}
