// Clamp: limits every element to [low, high].
//
// provides: is_identity, has_fast_path, map_values, map_vector, map_vector_fast
// requires: workgroup, maps, clamp_bits
// binds: bounds
// constants: WORKGROUP_SIZE, SEGMENTED

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    map_tile(workgroup_index(workgroup, grid), lane);
}

fn is_identity(target_index: u32) -> bool {
    return false;
}

fn has_fast_path(target_index: u32) -> bool {
    return true;
}

fn map_vector_fast(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    return map_vector(words, target_index);
}

fn map_vector(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    return clamp_vector(words, bounds_of(target_index));
}

fn map_values(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    return clamp_values(bits, bounds_of(target_index));
}

// SEGMENTED is 0 if there is only one pair of bounds; see scale.wgsl.
fn bounds_of(target_index: u32) -> Bounds {
    return bounds[target_index * SEGMENTED];
}
