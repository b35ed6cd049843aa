// Gradients of type f32.

// Returns the bits of gradient `i` as an f32.
fn element_bits(i: u32) -> u32 {
    return gradients[i];
}

// Returns the bits of the nearest element, as an f32.
fn rounded_to_element(bits: u32) -> u32 {
    return bits;
}
