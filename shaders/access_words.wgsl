// Reading a tile that begins anywhere and has any length: word by word.
//
// Interface: `load_to_end`. Needs the slots of words (gpu/slots.rs), tile.wgsl.

// The four words from word `at` of the tile; zeros past its end.
fn load_to_end(tile: Tile, at: u32) -> vec4<u32> {
    return vec4<u32>(
        load_word_to_end(tile, at),
        load_word_to_end(tile, at + 1u),
        load_word_to_end(tile, at + 2u),
        load_word_to_end(tile, at + 3u),
    );
}

fn load_word_to_end(tile: Tile, at: u32) -> u32 {
    if (at >= tile.count) {
        return 0u;
    }
    return load_word(tile.slot, tile.first + at);
}
