// Clamp with a loss scale: multiplies every element by the inverse of the loss scale, rounds the product to the type of the
// element, and limits it to [low, high].
//
// No pass has measured the elements, so infinities and NaNs are detected by their bits and not multiplied. The clamp then limits
// the infinities.
//
// provides: is_identity, has_fast_path, map_values, map_vector, map_vector_fast
// requires: workgroup, maps, elements, clamp_bits, ieee_product, float_bits, extended
// binds: unscaled_bounds
// constants: WORKGROUP_SIZE, SEGMENTED

struct UnscaledBounds {
    inverse_scale: f32, // the inverse of the loss scale; positive and finite
    bounds: array<Bounds>,
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

// Returns whether the device's multiplication suffices: the factor is a normal f32.
fn has_fast_path(target_index: u32) -> bool {
    let field = (bitcast<u32>(unscaled_bounds.inverse_scale) >> 23u) & 0xffu;
    return field - 1u < 254u;
}

fn map_vector_fast(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    if (unscaled_bounds.inverse_scale == 1.0) {
        return clamp_vector(words, bounds_of(target_index));
    }
    if (ELEMENTS_PER_WORD == 1u) {
        return clamp_vector(native_products(words), bounds_of(target_index));
    }
    let even = narrow(native_products(widen_even_magnitudes(words)));
    let odd = narrow(native_products(widen_odd_magnitudes(words)));
    return clamp_vector(with_signs(even | (odd << vec4(16u)), words), bounds_of(target_index));
}

fn map_vector(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    if (has_fast_path(target_index)) {
        return map_vector_fast(words, target_index);
    }
    if (ELEMENTS_PER_WORD == 1u) {
        return clamp_vector(integer_products(words), bounds_of(target_index));
    }
    let even = narrow(integer_products(widen_even(words)));
    let odd = narrow(integer_products(widen_odd(words)));
    return clamp_vector(even | (odd << vec4(16u)), bounds_of(target_index));
}

// Maps the bits of f32 values. A product is rounded to the type of the elements before it is clamped, so a small negative
// product may become -0.0.
fn map_values(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    if (unscaled_bounds.inverse_scale == 1.0) {
        return clamp_values(bits, bounds_of(target_index));
    }
    var products = vec4<u32>();
    if (has_fast_path(target_index)) {
        products = native_products(bits);
    } else {
        products = integer_products(bits);
    }
    return clamp_values(widen_even(narrow(products)), bounds_of(target_index));
}

// SEGMENTED is 0 if there is only one pair of bounds; see scale.wgsl.
fn bounds_of(target_index: u32) -> Bounds {
    return unscaled_bounds.bounds[target_index * SEGMENTED];
}

fn native_products(bits: vec4<u32>) -> vec4<u32> {
    let products = bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) * unscaled_bounds.inverse_scale);
    return select(products, bits, (bits & vec4(INFINITY)) == vec4(INFINITY));
}

fn integer_products(bits: vec4<u32>) -> vec4<u32> {
    return ieee_product(bits, extended(bitcast<u32>(unscaled_bounds.inverse_scale)));
}
