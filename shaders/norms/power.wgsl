// The norm of general p: (Σ |g|^p)^(1/p). For p = 0 it is the number of gradients with a non-zero element; for p = -∞, the
// smallest magnitude.
//
// Powers easily leave the range of f32, so magnitudes enter as ratios to a reference: the largest for p > 0, the smallest
// for p < 0. Each term is then a number in [0, 1] to the power of |p|.
//
// provides: reference_of, term
// requires: float_bits, partials
// constants: POWER

// For p = -∞, POWER is the lowest finite f32, since WGSL has no infinite constants.
fn reference_of(partial: Partial) -> u32 {
    return select(partial.smallest, partial.largest, POWER > 0.0);
}

// Returns (magnitude / reference)^p.
fn term(magnitude: u32, reference: u32) -> f32 {
    if (magnitude == reference) {
        return 1.0;
    }
    let big = max(magnitude, reference);
    let small = min(magnitude, reference);
    if (big >= INFINITY || small == 0u) {
        return 0.0;
    }
    // By exponents and significands: for a small p, even a ratio below the range of f32 contributes.
    let exponents = vec2(exponent_of(small), exponent_of(big));
    let ratio = scale_down(small, exponents.x) / scale_down(big, exponents.y);
    return exp2(abs(POWER) * (f32(exponents.x - exponents.y) + log2(ratio)));
}
