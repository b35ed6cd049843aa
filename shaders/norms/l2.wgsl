// The L2 norm, from a sum of squares that neither overflows nor vanishes.
//
// Squares of f32 overflow above 2^63 and vanish below 2^-63. A tile whose largest magnitude is out of a safe range is summed
// again, scaled by the power of two that brings its largest magnitude to [1, 2), and its partial is marked SCALED. The
// remedy is that of J. L. Blue, "A Portable Fortran Program to Find the Euclidean Norm of a Vector", ACM TOMS 4 (1978), and
// E. Anderson, "Algorithm 978: Safe Scaling in the Level 1 BLAS", ACM TOMS 44 (2017); here each tile has its own scale.
//
// provides: needs_scaling, accumulate, accumulate_scaled, rescale_sum, norm_of
// requires: float_bits, correctly_rounded, extended

// The unscaled sum is accurate if the largest magnitude is in 2^-40..2^45: squares that underflow are too small to affect it,
// and 2^37 squares do not overflow it.
const SMALLEST_UNSCALED: u32 = 0x2b800000u;
const LARGEST_UNSCALED: u32 = 0x56000000u;

fn needs_scaling(largest: u32) -> bool {
    let is_in_range = largest == 0u || (largest >= SMALLEST_UNSCALED && largest <= LARGEST_UNSCALED);
    return !is_in_range && largest < INFINITY;
}

fn accumulate(sum: vec4<f32>, bits: vec4<u32>) -> vec4<f32> {
    let g = bitcast<vec4<f32>>(bits);
    return fma(g, g, sum);
}

// Adds the squares of the elements divided by 2^exponent.
fn accumulate_scaled(sum: vec4<f32>, bits: vec4<u32>, exponent: i32) -> vec4<f32> {
    let g = scale_down_all(bits, exponent);
    return fma(g, g, sum);
}

// Only a sum of 0 is multiplied by more than 2^40. The bound keeps it 0 if a compiler squares the scale first.
const LARGEST_SCALE: f32 = 9223372036854775808.0; // 2^63

// Returns the sum as if every element had been multiplied by `scale`.
fn rescale_sum(sum: f32, scale: f32) -> f32 {
    let bounded = min(scale, LARGEST_SCALE);
    return sum * bounded * bounded;
}

// Returns the norm of finite elements, not all zero, from the sum of the squares of the elements divided by 2^exponent.
fn norm_of(sum: f32, exponent: i32, largest: u32) -> Extended {
    return normalized(square_root(sum), exponent);
}
