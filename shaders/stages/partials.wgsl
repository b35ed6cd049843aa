// Norm pass, first stage: reduces each tile to a partial.
//
//   partials[tile.target_index] = (Σ g², max |g|)    for the L2 norm, over the elements g of the tile
//
// One workgroup for each tile.
//
// requires: workgroup, tile, partials, tile_partial
// binds: tiles, partials
// constants: WORKGROUP_SIZE

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup_index(workgroup, grid);
    if (index >= arrayLength(&tiles)) {
        return;
    }
    let tile = tiles[index];
    let partial = partial_of_tile(tile, lane);
    if (lane == 0u) {
        partials[tile.target_index] = memory_form(partial);
    }
}
