// What an invocation knows of elements besides a sum while it reads them: the largest magnitude.
//
// Interface of the tallies: `Tally`, `tallied`, `partial_of`. Needs partial.wgsl, elements of a type, float_bits.wgsl.

// Four lanes of it.
struct Tally {
    largest: vec4<u32>, // as keys; see elements_f16.wgsl
}

// Of each word the upper bits are an element, as many as it has.
fn tallied(tally: Tally, words: vec4<u32>) -> Tally {
    return Tally(max(tally.largest, words & vec4(KEY)));
}

fn partial_of(sum: f32, tally: Tally) -> Partial {
    let most = tally.largest;
    return Partial(sum, magnitude_of(max(max(most.x, most.y), max(most.z, most.w))));
}
