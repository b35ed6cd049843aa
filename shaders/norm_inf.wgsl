// The infinity norm: the largest magnitude, which every norm keeps anyway. There is nothing to sum, and to rescue.
//
// Interface of the norms: `accumulate`, `accumulate_rescued`, `needs_rescue`, `rescaled`, `norm_of`. Needs float_bits.wgsl, found.wgsl.

fn needs_rescue(largest: u32) -> bool {
    return false;
}

fn accumulate(sum: vec4<f32>, bits: vec4<u32>) -> vec4<f32> {
    return sum;
}

fn accumulate_rescued(sum: vec4<f32>, bits: vec4<u32>, exponent: i32) -> vec4<f32> {
    return sum;
}

fn rescaled(sum: f32, scale: f32) -> f32 {
    return sum;
}

// The norm of finite elements.
fn norm_of(sum: f32, exponent: i32, largest: u32) -> Found {
    let own = exponent_of(largest);
    return regular(scaled_down(largest, own), own);
}
