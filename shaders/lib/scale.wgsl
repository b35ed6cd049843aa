// Products of elements and the factor of a record, by the index of the record.
//
// provides: has_unit_factor, has_native_factor, scaled_values, scaled_vector, scaled_vector_fast
// requires: elements, clip_record, ieee_product, float_bits, extended
// binds: records

// Returns whether scaling changes nothing.
fn has_unit_factor(index: u32) -> bool {
    return bitcast<u32>(records[index].factor) == ONE;
}

// Returns whether the device's multiplication suffices: f32 holds the factor, and no measured element is infinite or NaN.
fn has_native_factor(index: u32) -> bool {
    let record = &records[index];
    let is_in_range = u32((*record).factor_exponent + 126) < 254u;
    return ((*record).flags & CLIP_RECORD_NON_FINITE) == 0u && is_in_range;
}

fn scaled_vector_fast(words: vec4<u32>, index: u32) -> vec4<u32> {
    if (ELEMENTS_PER_WORD == 1u) {
        return scaled_values_fast(words, index);
    }
    // An unmeasured gradient may hold non-finite elements, whatever the record says.
    let even = narrow(scaled_values_fast(widen_even_magnitudes(words), index));
    let odd = narrow(scaled_values_fast(widen_odd_magnitudes(words), index));
    return with_signs(even | (odd << vec4(16u)), words);
}

fn scaled_vector(words: vec4<u32>, index: u32) -> vec4<u32> {
    if (ELEMENTS_PER_WORD == 1u) {
        return scaled_values(words, index);
    }
    let even = narrow(scaled_values(widen_even(words), index));
    let odd = narrow(scaled_values(widen_odd(words), index));
    return even | (odd << vec4(16u));
}

// Maps the bits of f32 values to the bits of their products.
fn scaled_values_fast(bits: vec4<u32>, index: u32) -> vec4<u32> {
    return bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) * records[index].factor);
}

fn scaled_values(bits: vec4<u32>, index: u32) -> vec4<u32> {
    if (has_native_factor(index)) {
        return scaled_values_fast(bits, index);
    }
    let record = &records[index];
    if (((*record).flags & CLIP_RECORD_ZERO) != 0u) {
        return vec4<u32>();
    }
    return ieee_product(bits, Extended(bitcast<u32>((*record).factor_significand), (*record).factor_exponent));
}
