// Gradients of type bf16: two in each word, the even one in the lower half. A bf16 is the upper half of an f32. No device
// feature is needed.

// Returns the bits of gradient `i` as an f32.
fn element_bits(i: u32) -> u32 {
    let word = gradients[i / 2u];
    return select(word << 16u, word & 0xffff0000u, i % 2u == 1u);
}

// Returns the bits of the nearest bf16, as an f32; ties to even. A magnitude that is too large becomes infinity.
fn rounded_to_element(bits: u32) -> u32 {
    let nearest = (bits + 0x7fffu + ((bits >> 16u) & 1u)) & 0xffff0000u;
    let is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return select(nearest, bits | 0x00400000u, is_nan);
}
