// A partial of a norm of general p: the sum of its terms, and the smallest and the largest magnitude. It always has counts.
//
// provides: Partial, NO_ELEMENTS, MISSING, combine, memory_form
// requires: float_bits, counts

struct Partial {
    sum: f32,      // of the terms; for p = 0, 1 if an element is not zero
    smallest: u32, // magnitudes, as bits
    largest: u32,
    counts: Counts,
}

// The `largest` of a partial that nothing has written: no magnitude has these bits.
const MISSING: u32 = 0xffffffffu;

const NO_ELEMENTS: Partial = Partial(0.0, MAGNITUDE, 0u, Counts());

fn combine(a: Partial, b: Partial) -> Partial {
    return Partial(
        a.sum + b.sum,
        min(a.smallest, b.smallest),
        max(a.largest, b.largest),
        add_counts(a.counts, b.counts),
    );
}

// Converts between a partial and its form in memory. There, `largest` is inverted, so that zeroed memory is MISSING.
fn memory_form(partial: Partial) -> Partial {
    return Partial(partial.sum, partial.smallest, ~partial.largest, partial.counts);
}
