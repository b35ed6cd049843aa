// Tiles: the work of one workgroup each.
//
// Interface: `Tile`, `Block`, `tiles`, `tile_index`, STRIDE. Needs workgroup.wgsl, elements of a type.

// Elements from one vector of an invocation to its next: the workgroup covers that many with one vector each.
override STRIDE: u32 = PER_VECTOR * WORKGROUP_SIZE;

// A run of consecutive elements in one of the bound windows.
struct Tile {
    slot: u32,   // which window
    first: u32,  // index of the first element, from the start of the window
    count: u32,  // how many elements
    target_index: u32, // norm pass: which partial it makes; scale pass: which record it obeys
}

// Four vectors of one invocation, STRIDE elements apart.
struct Block {
    v0: vec4<u32>,
    v1: vec4<u32>,
    v2: vec4<u32>,
    v3: vec4<u32>,
}

@group(0) @binding(0) var<storage, read> tiles: array<Tile>;

// One dimension of a grid may be too short for all tiles: it is folded into two, with up to a row too many.
fn tile_index(workgroup: vec3<u32>, grid: vec3<u32>) -> u32 {
    return workgroup.y * grid.x + workgroup.x;
}
