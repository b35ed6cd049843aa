// An elementwise operation on single elements of 32 bits, in place: the edges that do not fill a vector.
//
// One workgroup a tile of a few elements. A vector store there would write, or race with, what lies beside the gradient.
// Needs an operation, the slots of words (gpu/slots.rs), tile.wgsl.

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = tile_index(workgroup, grid);
    if (index >= arrayLength(&tiles) || nothing_to_do(tiles[index].target_index)) {
        return;
    }
    let tile = tiles[index];
    for (var at = lane; at < tile.count; at += WORKGROUP_SIZE) {
        let old = load_word(tile.slot, tile.first + at);
        store_word(tile.slot, tile.first + at, old, apply(vec4(old), tile.target_index).x);
    }
}
