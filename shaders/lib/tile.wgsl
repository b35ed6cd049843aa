// Tiles: a tile is the work of one workgroup.
//
// provides: Tile, Block

// A run of consecutive elements in one of the bound windows.
struct Tile {
    slot: u32,         // the slot of the window
    first: u32,        // the index of the first element, from the start of the window
    count: u32,        // the number of elements
    target_index: u32, // norm pass: the partial to write; elementwise pass: the record or bounds to apply
}

// Four vectors of one invocation, STRIDE elements apart.
struct Block {
    v0: vec4<u32>,
    v1: vec4<u32>,
    v2: vec4<u32>,
    v3: vec4<u32>,
}
