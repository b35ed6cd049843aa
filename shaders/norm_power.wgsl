// The norm of any other p: (Σ |g|^p)^(1/p), the number of gradients that are not zero for p = 0, the smallest magnitude for
// p = -∞. Plain instead of fast.
//
// Powers leave the range of f32 soon, so magnitudes enter as ratios to a reference: the largest for p > 0, the smallest
// for p < 0. Either way each term is a number of [0, 1] to the power of |p|.
//
// Interface: POWER, `Partial`, NOTHING, `Item`, `join`, `term`, `reference_of`. Needs float_bits.wgsl, counts.wgsl.

override POWER: f32; // -∞, which a constant cannot be, is the lowest number

struct Partial {
    sum: f32,      // of the terms; for p = 0, 1 if an element is not zero
    smallest: u32, // magnitudes, as bits
    largest: u32,
    counts: Counts,
}

const NOTHING: Partial = Partial(0.0, MAGNITUDE, 0u, Counts());

alias Item = Partial;

fn join(a: Item, b: Item) -> Item {
    return Item(
        a.sum + b.sum,
        min(a.smallest, b.smallest),
        max(a.largest, b.largest),
        together(a.counts, b.counts),
    );
}

fn reference_of(all: Partial) -> u32 {
    return select(all.smallest, all.largest, POWER > 0.0);
}

// (magnitude / reference)^p.
fn term(magnitude: u32, reference: u32) -> f32 {
    if (magnitude == reference) {
        return 1.0;
    }
    let big = max(magnitude, reference);
    let small = min(magnitude, reference);
    if (big >= INFINITY || small == 0u) {
        return 0.0;
    }
    // By exponents and significands: for a small p even a ratio that f32 does not hold has a share.
    let exponents = vec2(exponent_of(small), exponent_of(big));
    let ratio = scaled_down(small, exponents.x) / scaled_down(big, exponents.y);
    return exp2(abs(POWER) * (f32(exponents.x - exponents.y) + log2(ratio)));
}
