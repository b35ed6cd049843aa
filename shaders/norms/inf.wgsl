// The infinity norm: the largest magnitude, which every partial has. There is no sum.
//
// provides: needs_scaling, accumulate, accumulate_scaled, rescale_sum, norm_of
// requires: extended

fn needs_scaling(largest: u32) -> bool {
    return false;
}

fn accumulate(sum: vec4<f32>, bits: vec4<u32>) -> vec4<f32> {
    return sum;
}

fn accumulate_scaled(sum: vec4<f32>, bits: vec4<u32>, exponent: i32) -> vec4<f32> {
    return sum;
}

fn rescale_sum(sum: f32, scale: f32) -> f32 {
    return sum;
}

// Returns the norm of finite elements, not all zero.
fn norm_of(sum: f32, exponent: i32, largest: u32) -> Extended {
    return extended(largest);
}
