// The L1 norm: the sum of magnitudes. It is rescued as the L2 norm is, only much later.
//
// Interface of the norms: `accumulate`, `accumulate_rescued`, `needs_rescue`, `rescaled`, `norm_of`. Needs float_bits.wgsl, found.wgsl.

// A plain sum is right for a largest magnitude of 2^-80 to 2^90: subnormals that may be flushed cannot be seen in it,
// and 2^37 magnitudes do not overflow it.
const SMALLEST_PLAIN: u32 = 0x17800000u;
const LARGEST_PLAIN: u32 = 0x6c800000u;

fn needs_rescue(largest: u32) -> bool {
    let plain = largest == 0u || (largest >= SMALLEST_PLAIN && largest <= LARGEST_PLAIN);
    return !plain && largest < INFINITY;
}

fn accumulate(sum: vec4<f32>, bits: vec4<u32>) -> vec4<f32> {
    return sum + bitcast<vec4<f32>>(bits & vec4(MAGNITUDE));
}

fn accumulate_rescued(sum: vec4<f32>, bits: vec4<u32>, exponent: i32) -> vec4<f32> {
    return sum + all_scaled_down(bits, exponent);
}

// The sum if every element had been multiplied by `scale`.
fn rescaled(sum: f32, scale: f32) -> f32 {
    return sum * scale;
}

// The norm of finite elements, divided by 2^exponent, with this sum.
fn norm_of(sum: f32, exponent: i32, largest: u32) -> Found {
    return regular(sum, exponent);
}
