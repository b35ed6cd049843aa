// What an invocation knows of elements besides a sum where they are counted.
//
// The interface is that of tally.wgsl. Needs partial_counted.wgsl, elements of a type, float_bits.wgsl.

struct Tally {
    largest: vec4<u32>, // as keys; see elements_f16.wgsl
    zeros: vec4<u32>,
    non_finite: vec4<u32>,
}

fn tallied(tally: Tally, words: vec4<u32>) -> Tally {
    let keys = words & vec4(KEY);
    return Tally(
        max(tally.largest, keys),
        tally.zeros + select(vec4(0u), vec4(1u), keys == vec4(0u)),
        tally.non_finite + select(vec4(0u), vec4(1u), keys >= vec4(TOP)),
    );
}

fn partial_of(sum: f32, tally: Tally) -> Partial {
    let most = tally.largest;
    let zeros = tally.zeros;
    let bad = tally.non_finite;
    return Partial(
        sum,
        magnitude_of(max(max(most.x, most.y), max(most.z, most.w))),
        (zeros.x + zeros.y) + (zeros.z + zeros.w),
        (bad.x + bad.y) + (bad.z + bad.w),
    );
}
