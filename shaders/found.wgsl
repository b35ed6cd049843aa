// A norm of any size.
//
// Interface: `Found`, `special`, `regular`, `counted`.

// A norm before the loss scale is undone: value * 2^exponent, with a normal value; or bits that are zero, infinite or NaN.
struct Found {
    special: bool,
    bits: u32,
    value: f32,
    exponent: i32,
    is_count: bool, // which has no loss scale to undo
}

fn special(bits: u32) -> Found {
    return Found(true, bits, 0.0, 0, false);
}

fn regular(value: f32, exponent: i32) -> Found {
    return Found(false, 0u, value, exponent, false);
}

fn counted(count: f32) -> Found {
    return Found(false, 0u, count, 0, true);
}
