// Scale: multiplies every element by the factor of a record.
//
// If the factor is 1, workgroups return before they read a gradient. Only a host that has waited for the GPU could skip the
// dispatch altogether.
//
// provides: is_identity, has_fast_path, map_values, map_vector, map_vector_fast
// requires: workgroup, maps, elements, clip_record, ieee_product, float_bits, extended
// binds: records
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
    return bitcast<u32>(records[record_index(target_index)].factor) == ONE;
}

// Returns whether the device's multiplication suffices: f32 holds the factor, and no measured element is infinite or NaN.
fn has_fast_path(target_index: u32) -> bool {
    let record = &records[record_index(target_index)];
    let is_in_range = u32((*record).factor_exponent + 126) < 254u;
    return ((*record).flags & CLIP_RECORD_NON_FINITE) == 0u && is_in_range;
}

fn map_vector_fast(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    if (ELEMENTS_PER_WORD == 1u) {
        return map_values_fast(words, target_index);
    }
    // An unmeasured gradient may hold non-finite elements, whatever the record says.
    let even = narrow(map_values_fast(widen_even_magnitudes(words), target_index));
    let odd = narrow(map_values_fast(widen_odd_magnitudes(words), target_index));
    return with_signs(even | (odd << vec4(16u)), words);
}

fn map_vector(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    if (ELEMENTS_PER_WORD == 1u) {
        return map_values(words, target_index);
    }
    let even = narrow(map_values(widen_even(words), target_index));
    let odd = narrow(map_values(widen_odd(words), target_index));
    return even | (odd << vec4(16u));
}

// Maps the bits of f32 values to the bits of their products.
fn map_values_fast(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    return bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) * records[record_index(target_index)].factor);
}

fn map_values(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    if (has_fast_path(target_index)) {
        return map_values_fast(bits, target_index);
    }
    let record = &records[record_index(target_index)];
    if (((*record).flags & CLIP_RECORD_ZERO) != 0u) {
        return vec4<u32>();
    }
    return ieee_product(bits, Extended(bitcast<u32>((*record).factor_significand), (*record).factor_exponent));
}
