// Clamps elements to bounds. Elements are compared as integers, so NaNs, -0.0 and subnormals are preserved.
//
// provides: Bounds, clamp_vector, clamp_values
// requires: elements, float_bits

// The bits of f32 bounds that are rounded to the type of the elements.
struct Bounds {
    low: u32,
    high: u32,
}

// Clamps a vector of elements.
fn clamp_vector(words: vec4<u32>, range: Bounds) -> vec4<u32> {
    if (ELEMENTS_PER_WORD == 1u) {
        return clamp_values(words, range);
    }
    // A 16-bit float in the upper half of a word compares as an f32 does, so nothing is widened.
    let both = narrow(vec4(range.low, range.high, 0u, 0u)) << vec4(16u);
    let even = clamp_bits(words << vec4(16u), both.x, both.y, INFINITY_KEY);
    let odd = clamp_bits(words & vec4(0xffff0000u), both.x, both.y, INFINITY_KEY);
    return (even >> vec4(16u)) | odd;
}

// Clamps the bits of f32 values.
fn clamp_values(bits: vec4<u32>, range: Bounds) -> vec4<u32> {
    return clamp_bits(bits, range.low, range.high, INFINITY);
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
