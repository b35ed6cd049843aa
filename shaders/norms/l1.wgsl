// The L1 norm: the sum of magnitudes. Tiles are scaled as for the L2 norm (l2.wgsl), but only at more extreme magnitudes.
//
// provides: needs_scaling, accumulate, accumulate_scaled, rescale_sum, norm_of
// requires: float_bits, extended

// The unscaled sum is accurate if the largest magnitude is in 2^-80..2^90: subnormals, which a device may flush, are too small
// to affect it, and 2^37 magnitudes do not overflow it.
const SMALLEST_UNSCALED: u32 = 0x17800000u;
const LARGEST_UNSCALED: u32 = 0x6c800000u;

fn needs_scaling(largest: u32) -> bool {
    let is_in_range = largest == 0u || (largest >= SMALLEST_UNSCALED && largest <= LARGEST_UNSCALED);
    return !is_in_range && largest < INFINITY;
}

fn accumulate(sum: vec4<f32>, bits: vec4<u32>) -> vec4<f32> {
    return sum + bitcast<vec4<f32>>(bits & vec4(MAGNITUDE));
}

// Adds the magnitudes divided by 2^exponent.
fn accumulate_scaled(sum: vec4<f32>, bits: vec4<u32>, exponent: i32) -> vec4<f32> {
    return sum + scale_down_all(bits, exponent);
}

// Returns the sum as if every element had been multiplied by `scale`.
fn rescale_sum(sum: f32, scale: f32) -> f32 {
    return sum * scale;
}

// Returns the norm of finite elements, not all zero, from the sum of the magnitudes divided by 2^exponent.
fn norm_of(sum: f32, exponent: i32, largest: u32) -> Extended {
    return normalized(sum, exponent);
}
