// A clip of few tiles by one norm: the stages partials, finalize and scale in one dispatch of a single workgroup.
//
// It calls the functions of these stages, in the same order, so its results have the same bits. The partials stay in workgroup
// memory. The record goes through its buffer, which callers read.
//
// provides: is_identity, has_fast_path, map_values, map_vector, map_vector_fast
// requires: workgroup, tile, tile_partial, banks, finalize, maps, scale
// binds: tiles
// constants: WORKGROUP_SIZE

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if (workgroup_index(workgroup, grid) > 0u) {
        return;
    }
    for (var index = 0u; index < arrayLength(&tiles); index += 1u) {
        let tile = tiles[index];
        let partial = partial_of_tile(tile, lane);
        if (lane == 0u) {
            sh_tile_partials[tile.target_index] = partial;
        }
    }
    workgroupBarrier();
    finalize_segment(0u, lane);
    // Invocation 0 has written the record. Every invocation has read the elements that others are about to write.
    storageBarrier();
    for (var index = 0u; index < arrayLength(&tiles); index += 1u) {
        map_tile(index, lane);
    }
}

// The `target_index` of a tile is its partial. All tiles have record 0.

fn is_identity(target_index: u32) -> bool {
    return has_unit_factor(0u);
}

fn has_fast_path(target_index: u32) -> bool {
    return has_native_factor(0u);
}

fn map_vector_fast(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    return scaled_vector_fast(words, 0u);
}

fn map_vector(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    return scaled_vector(words, 0u);
}

fn map_values(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    return scaled_values(bits, 0u);
}
