// A partial: the share of some elements in a norm, as a sum and the largest magnitude.
//
// provides: Partial, COUNTED, SCALED, MISSING, memory_form, combine, new_partial, select_partial, counts_of, without_padding
// requires: float_bits, counts

struct Partial {
    sum: f32,     // of the norm's terms; of the scaled elements if SCALED is set
    largest: u32, // the largest magnitude, as bits; SCALED is its sign bit
}

const COUNTED: bool = false;
const SCALED: u32 = SIGN;
// The `largest` of a partial that nothing has written: no magnitude has these bits, scaled or not.
const MISSING: u32 = 0xffffffffu;

// If either is scaled, `largest` is the larger magnitude of the scaled ones.
fn combine(a: Partial, b: Partial) -> Partial {
    return Partial(a.sum + b.sum, max(a.largest, b.largest));
}

fn new_partial(sum: f32, largest: u32, counts: Counts) -> Partial {
    return Partial(sum, largest);
}

// Returns `partial` if `condition` holds, otherwise the partial of no elements.
fn select_partial(condition: bool, partial: Partial) -> Partial {
    return Partial(select(0.0, partial.sum, condition), select(0u, partial.largest, condition));
}

fn counts_of(partial: Partial) -> Counts {
    return Counts();
}

// Removes zeros that were read past the end of a tile from the counts.
fn without_padding(partial: Partial, padding: u32) -> Partial {
    return partial;
}

// Converts between a partial and its form in memory. There, `largest` is inverted, so that zeroed memory is MISSING.
fn memory_form(partial: Partial) -> Partial {
    return Partial(partial.sum, ~partial.largest);
}
