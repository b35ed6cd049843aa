// What a vector of words adds to a norm, where an element is a word.
//
// Interface: `add_words`, `add_rescued_words`, `largest_in`. Needs a norm.

fn add_words(sum: vec4<f32>, words: vec4<u32>) -> vec4<f32> {
    return accumulate(sum, words);
}

fn add_rescued_words(sum: vec4<f32>, words: vec4<u32>, exponent: i32) -> vec4<f32> {
    return accumulate_rescued(sum, words, exponent);
}

fn largest_in(words: vec4<u32>) -> vec4<u32> {
    return words & vec4(MAGNITUDE);
}
