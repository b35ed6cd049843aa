// Clamp on a vector of words, where a word holds two elements: see each_f32.wgsl for the interface.
//
// The bits of a 16-bit float in the upper half of a word are compared like those of an f32, so nothing is widened.
//
// Needs clamp.wgsl, elements of a 16-bit type.

fn each_of(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    let own = bounds[target_index * SEGMENTED];
    let both = narrowed(vec4(own.low, own.high, 0u, 0u)) << vec4(16u);
    let low = clamped(words << vec4(16u), both.x, both.y, TOP);
    let high = clamped(words & vec4(0xffff0000u), both.x, both.y, TOP);
    return (low >> vec4(16u)) | high;
}

fn each_plain_of(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    return each_of(words, target_index);
}
