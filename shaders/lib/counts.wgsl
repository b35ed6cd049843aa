// The numbers of zero and of non-finite elements.
//
// provides: Counts, add_counts

struct Counts {
    zeros: u32,
    non_finite: u32,
}

// Returns a + b; each count saturates at the largest u32.
fn add_counts(a: Counts, b: Counts) -> Counts {
    return Counts(a.zeros + min(b.zeros, ~a.zeros), a.non_finite + min(b.non_finite, ~a.non_finite));
}
