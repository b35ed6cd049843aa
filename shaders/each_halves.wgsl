// An operation on a vector of words, where a word holds two elements.
//
// Interface: `each_of`. Needs `apply` of an operation, elements of a 16-bit type.

fn each_of(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    let low = narrowed(apply(low_halves(words), target_index));
    let high = narrowed(apply(high_halves(words), target_index));
    return low | (high << vec4(16u));
}
