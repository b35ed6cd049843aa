// Extended floats: f32 significands with exponents of 32 bits, for norms, limits and factors beyond the range of f32.
//
// The operations work on significands in [1, 2), so that no device can flush an operand or a result. A product that
// becomes subnormal in `nearest_f32` is rounded twice.
//
// provides: Extended, extended, normalized, extended_product, exceeds, nearest_f32
// requires: float_bits

// significand * 2^exponent. `significand` has the bits of an f32 whose magnitude is in [1, 2); or those of a zero, an
// infinity or a NaN, whose exponent is 0.
struct Extended {
    significand: u32,
    exponent: i32,
}

// Converts the bits of an f32; exact, subnormals included.
fn extended(bits: u32) -> Extended {
    let magnitude = bits & MAGNITUDE;
    if (magnitude == 0u || magnitude >= INFINITY) {
        return Extended(bits, 0);
    }
    if (magnitude >= SMALLEST_NORMAL) {
        return Extended((bits & SIGN) | (magnitude & 0x7fffffu) | ONE, i32(magnitude >> 23u) - 127);
    }
    let exponent = exponent_of(magnitude);
    return Extended((bits & SIGN) | bitcast<u32>(scale_down(magnitude, exponent)), exponent);
}

// Returns value * 2^exponent for a normal value above zero.
fn normalized(value: f32, exponent: i32) -> Extended {
    let bits = bitcast<u32>(value);
    return Extended((bits & 0x7fffffu) | ONE, exponent + i32(bits >> 23u) - 127);
}

// Returns a * b, with the significand rounded as the device rounds products, for two finite numbers.
fn extended_product(a: Extended, b: Extended) -> Extended {
    let sign = (a.significand ^ b.significand) & SIGN;
    let x = a.significand & MAGNITUDE;
    let y = b.significand & MAGNITUDE;
    if (x == 0u || y == 0u) {
        return Extended(sign, 0);
    }
    let magnitude = normalized(bitcast<f32>(x) * bitcast<f32>(y), a.exponent + b.exponent);
    return Extended(sign | magnitude.significand, magnitude.exponent);
}

// Returns whether a > b, for numbers that are not negative. a is finite; b may be infinite.
fn exceeds(a: Extended, b: Extended) -> bool {
    if (a.significand == 0u || b.significand >= INFINITY) {
        return false;
    }
    return b.significand == 0u || a.exponent > b.exponent || (a.exponent == b.exponent && a.significand > b.significand);
}

// Returns the bits of the nearest f32; infinity if the number is too large.
fn nearest_f32(number: Extended) -> u32 {
    let significand = number.significand & MAGNITUDE;
    if (significand == 0u || significand >= INFINITY) {
        return number.significand;
    }
    return (number.significand & SIGN) | scale_up(bitcast<f32>(significand), number.exponent);
}
