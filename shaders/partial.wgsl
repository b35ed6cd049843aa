// What a norm knows of some elements.
//
// Interface: `Partial`, `combine`, RESCUED. Needs float_bits.wgsl.

struct Partial {
    sum: f32,     // of what the norm sums up; of the scaled elements where RESCUED is set
    largest: u32, // the largest magnitude, as bits; RESCUED is its sign bit
}

const RESCUED: u32 = SIGN;

fn combine(a: Partial, b: Partial) -> Partial {
    let largest = max(a.largest & MAGNITUDE, b.largest & MAGNITUDE);
    return Partial(a.sum + b.sum, largest | ((a.largest | b.largest) & RESCUED));
}
