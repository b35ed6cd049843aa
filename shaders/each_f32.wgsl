// An operation on a vector of words, where an element is a word.
//
// Interface: `each_of`, `each_plain_of`. Needs `apply` and `apply_plain` of an operation.

fn each_of(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    return apply(words, target_index);
}

// The same where the operation `is_plain`.
fn each_plain_of(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    return apply_plain(words, target_index);
}
