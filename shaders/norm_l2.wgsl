// The L2 norm, as a sum of squares that neither overflows nor vanishes.
//
// A tile whose largest magnitude is so large or so small that plain squares would leave f32 is summed again, scaled
// by the power of two that brings its largest magnitude to [1, 2); its partial is marked RESCUED.
//
// Interface of the norms: `accumulate`, `accumulate_rescued`, `needs_rescue`, `rescaled`, `norm_of`. Needs float_bits.wgsl, exact.wgsl,
// found.wgsl.

// Plain squares are right for a largest magnitude of 2^-40 to 2^45: the square of what is smaller by so much that
// it underflows cannot be seen in the sum, and 2^37 squares do not overflow it.
const SMALLEST_PLAIN: u32 = 0x2b800000u;
const LARGEST_PLAIN: u32 = 0x56000000u;

fn needs_rescue(largest: u32) -> bool {
    let plain = largest == 0u || (largest >= SMALLEST_PLAIN && largest <= LARGEST_PLAIN);
    return !plain && largest < INFINITY;
}

fn accumulate(sum: vec4<f32>, bits: vec4<u32>) -> vec4<f32> {
    let g = bitcast<vec4<f32>>(bits);
    return fma(g, g, sum);
}

fn accumulate_rescued(sum: vec4<f32>, bits: vec4<u32>, exponent: i32) -> vec4<f32> {
    let g = all_scaled_down(bits, exponent);
    return fma(g, g, sum);
}

// No sum but 0 is multiplied by more than 2^40, and 0 must stay 0 where a compiler squares the scale first.
const LARGEST_SCALE: f32 = 9223372036854775808.0; // 2^63

// The sum if every element had been multiplied by `scale`.
fn rescaled(sum: f32, scale: f32) -> f32 {
    let bounded = min(scale, LARGEST_SCALE);
    return sum * bounded * bounded;
}

// The norm of finite elements, divided by 2^exponent, with this sum.
fn norm_of(sum: f32, exponent: i32, largest: u32) -> Found {
    return regular(square_root(sum), exponent);
}
