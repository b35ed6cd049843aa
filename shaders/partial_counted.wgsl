// What a norm knows of some elements where they are counted besides: how many are zero, how many are not finite.
//
// The interface is that of partial.wgsl. Needs float_bits.wgsl, counts.wgsl.

struct Partial {
    sum: f32,     // of what the norm sums up; of the scaled elements where RESCUED is set
    largest: u32, // the largest magnitude, as bits; RESCUED is its sign bit
    zeros: u32,
    non_finite: u32,
}

const RESCUED: u32 = SIGN;

fn combine(a: Partial, b: Partial) -> Partial {
    let both = together(counts_of(a), counts_of(b));
    return Partial(a.sum + b.sum, max(a.largest, b.largest), both.zeros, both.non_finite);
}

// The partial, or nothing.
fn kept_if(condition: bool, partial: Partial) -> Partial {
    let words = vec3(partial.largest, partial.zeros, partial.non_finite);
    let kept = select(vec3<u32>(), words, condition);
    return Partial(select(0.0, partial.sum, condition), kept.x, kept.y, kept.z);
}

fn counts_of(partial: Partial) -> Counts {
    return Counts(partial.zeros, partial.non_finite);
}

// Where a tile was read past its end, as zeros.
fn without_zeros(partial: Partial, zeros: u32) -> Partial {
    return Partial(partial.sum, partial.largest, partial.zeros - zeros, partial.non_finite);
}
