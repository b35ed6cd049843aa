// A norm of any size.
//
// Interface: `Found`, `special`, `regular`.

// A norm before the loss scale is undone: value * 2^exponent, with a normal value; or bits that are zero, infinite or NaN.
struct Found {
    special: bool,
    bits: u32,
    value: f32,
    exponent: i32,
}

fn special(bits: u32) -> Found {
    return Found(true, bits, 0.0, 0);
}

fn regular(value: f32, exponent: i32) -> Found {
    return Found(false, 0u, value, exponent);
}
