// Scale on a vector of words, where a word holds two elements: see each_f32.wgsl for the interface.
//
// Needs scale.wgsl, elements of a 16-bit type.

fn each_of(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    let low = narrowed(apply(low_halves(words), target_index));
    let high = narrowed(apply(high_halves(words), target_index));
    return low | (high << vec4(16u));
}

fn each_plain_of(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    // An unmeasured gradient may hold what is not finite, whatever the record says.
    let low = narrowed(apply_plain(low_magnitudes(words), target_index));
    let high = narrowed(apply_plain(high_magnitudes(words), target_index));
    return with_signs(low | (high << vec4(16u)), words);
}
