// What a vector of words adds to a norm, where an element is a word.
//
// Interface: `add_words`, `add_rescued_words`, `tally_words`. Needs a norm, a tally.

fn add_words(sum: vec4<f32>, words: vec4<u32>) -> vec4<f32> {
    return accumulate(sum, words);
}

fn add_rescued_words(sum: vec4<f32>, words: vec4<u32>, exponent: i32) -> vec4<f32> {
    return accumulate_rescued(sum, words, exponent);
}

fn tally_words(tally: Tally, words: vec4<u32>) -> Tally {
    return tallied(tally, words);
}
