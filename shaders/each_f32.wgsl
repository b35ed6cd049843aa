// An operation on a vector of words, where an element is a word.
//
// Interface: `each_of`. Needs `apply` of an operation.

fn each_of(words: vec4<u32>, target_index: u32) -> vec4<u32> {
    return apply(words, target_index);
}
