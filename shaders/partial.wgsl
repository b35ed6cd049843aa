// What a norm knows of some elements: a sum, and the largest magnitude.
//
// Interface of the partials: `Partial`, `combine`, `kept_if`, `counts_of`, `without_zeros`, RESCUED. Needs float_bits.wgsl,
// counts.wgsl.

struct Partial {
    sum: f32,     // of what the norm sums up; of the scaled elements where RESCUED is set
    largest: u32, // the largest magnitude, as bits; RESCUED is its sign bit
}

const RESCUED: u32 = SIGN;

// Where one of the two is rescued, the larger magnitude of the rescued ones.
fn combine(a: Partial, b: Partial) -> Partial {
    return Partial(a.sum + b.sum, max(a.largest, b.largest));
}

// The partial, or nothing.
fn kept_if(condition: bool, partial: Partial) -> Partial {
    return Partial(select(0.0, partial.sum, condition), select(0u, partial.largest, condition));
}

// Nobody has counted.
fn counts_of(partial: Partial) -> Counts {
    return Counts();
}

fn without_zeros(partial: Partial, zeros: u32) -> Partial {
    return partial;
}
