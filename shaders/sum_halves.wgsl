// What a vector of words adds to a norm, where a word holds two elements.
//
// Interface: `add_words`, `add_rescued_words`, `tally_words`. Needs a norm, a tally, elements of a 16-bit type.

// A sum with an element that is not finite means nothing, but the tally knows of it.
fn add_words(sum: vec4<f32>, words: vec4<u32>) -> vec4<f32> {
    return accumulate(accumulate(sum, low_finite(words)), high_finite(words));
}

fn add_rescued_words(sum: vec4<f32>, words: vec4<u32>, exponent: i32) -> vec4<f32> {
    let low = accumulate_rescued(sum, low_halves(words), exponent);
    return accumulate_rescued(low, high_halves(words), exponent);
}

fn tally_words(tally: Tally, words: vec4<u32>) -> Tally {
    return tallied(tallied(tally, words << vec4(16u)), words);
}
