// Clamp: limits every element to [low, high]. Elements are compared as integers, so NaNs, -0.0 and subnormals are preserved.
//
// provides: is_identity, has_fast_path, map_values, map_vector, map_vector_fast
// requires: workgroup, maps, elements, float_bits
// binds: bounds
// constants: WORKGROUP_SIZE, SEGMENTED

// The bits of f32 bounds that are rounded to the type of the elements.
struct Bounds {
    low: u32,
    high: u32,
}

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
    if (ELEMENTS_PER_WORD == 1u) {
        return map_values(words, target_index);
    }
    // A 16-bit float in the upper half of a word compares as an f32 does, so nothing is widened.
    let bounds_f32 = bounds_of(target_index);
    let both = narrow(vec4(bounds_f32.low, bounds_f32.high, 0u, 0u)) << vec4(16u);
    let even = clamp_bits(words << vec4(16u), both.x, both.y, INFINITY_KEY);
    let odd = clamp_bits(words & vec4(0xffff0000u), both.x, both.y, INFINITY_KEY);
    return (even >> vec4(16u)) | odd;
}

fn map_values(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    let bounds_f32 = bounds_of(target_index);
    return clamp_bits(bits, bounds_f32.low, bounds_f32.high, INFINITY);
}

// SEGMENTED is 0 if there is only one pair of bounds; see scale.wgsl.
fn bounds_of(target_index: u32) -> Bounds {
    return bounds[target_index * SEGMENTED];
}

// Clamps floats that have their sign and exponent in the upper bits of a word. `infinity` has the bits of their infinity.
fn clamp_bits(bits: vec4<u32>, low: u32, high: u32, infinity: u32) -> vec4<u32> {
    let raised = select(bits, vec4(low), ordered(bits) < ordered(vec4(low)));
    let lowered = select(raised, vec4(high), ordered(raised) > ordered(vec4(high)));
    return select(lowered, bits, (bits & vec4(MAGNITUDE)) > vec4(infinity));
}

// Returns integers in the order of the floats; both zeros become 0.
fn ordered(bits: vec4<u32>) -> vec4<i32> {
    let magnitude = bitcast<vec4<i32>>(bits & vec4(MAGNITUDE));
    return select(magnitude, -magnitude, (bits & vec4(SIGN)) != vec4(0u));
}
