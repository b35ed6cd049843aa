// How many elements are of a kind.
//
// Interface: `Counts`, `together`.

struct Counts {
    zeros: u32,
    non_finite: u32,
}

// Stuck at what 32 bits hold.
fn together(a: Counts, b: Counts) -> Counts {
    return Counts(a.zeros + min(b.zeros, ~a.zeros), a.non_finite + min(b.non_finite, ~a.non_finite));
}
