// An elementwise operation on whole vectors, in place. Vectors that it leaves as they are are not stored.
//
// One workgroup a tile; its first word and its length are multiples of four. Needs `nothing_to_do` and `apply` of
// an operation, the slots of vectors (gpu/slots.rs), tile.wgsl.

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = tile_index(workgroup, grid);
    if (index >= arrayLength(&tiles) || nothing_to_do()) {
        return;
    }
    let tile = tiles[index];
    var at = 4u * lane;
    for (var blocks = tile.count / (4u * STRIDE); blocks > 0u; blocks -= 1u) {
        let old = load_block(tile.slot, tile.first + at, STRIDE);
        let new_block = Block(apply(old.v0), apply(old.v1), apply(old.v2), apply(old.v3));
        store_block(tile.slot, tile.first + at, STRIDE, old, new_block);
        at += 4u * STRIDE;
    }
    for (; at < tile.count; at += STRIDE) {
        let old = load(tile.slot, tile.first + at);
        store(tile.slot, tile.first + at, old, apply(old));
    }
}
