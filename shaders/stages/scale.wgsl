// Scale: multiplies every element by the factor of a record.
//
// If the factor is 1, workgroups return before they read a gradient. Only a host that has waited for the GPU could skip the
// dispatch altogether.
//
// provides: is_identity, has_fast_path, map_values, map_vector, map_vector_fast
// requires: workgroup, maps, scale
// constants: WORKGROUP_SIZE, SEGMENTED

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    map_tile(workgroup_index(workgroup, grid), lane);
}

// Returns the index of the record of a tile. SEGMENTED is 0 if there is only one record, so that no workgroup waits for its tile
// to find the index.
fn record_index(target_index: u32) -> u32 {
    return target_index * SEGMENTED;
}

fn is_identity(target_index: u32) -> bool {
    return has_unit_factor(record_index(target_index));
}

fn has_fast_path(target_index: u32) -> bool {
    return has_native_factor(record_index(target_index));
}

fn map_vector_fast(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    return scaled_vector_fast(words, record_index(target_index));
}

fn map_vector(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    return scaled_vector(words, record_index(target_index));
}

fn map_values(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    return scaled_values(bits, record_index(target_index));
}
