// Square root, reciprocal and product of f32, rounded to nearest on every adapter.
//
// WGSL allows a division and a square root to miss by several units in the last place, lets a device flush subnormals,
// and lets a compiler reassociate products. So these work on significands in [1, 2). Integers settle the last bit of roots and
// reciprocals, and the exponents; a product that is subnormal is rounded twice.
//
// Interface: `square_root`, `reciprocal`; `Wide`, `wide`, `normalized`, `wide_product`, `nearest_f32`. Needs float_bits.wgsl.

// More units in the last place than any estimate of a device is off by; it bounds the loops, whatever a device returns.
const MOST_CORRECTIONS: u32 = 16u;

// The square root of a normal value above zero.
fn square_root(value: f32) -> f32 {
    let bits = bitcast<u32>(value);
    let exponent = i32(bits >> 23u) - 127;
    let odd = exponent & 1;
    // value = radicand * 2^(exponent - odd - 23). The root of radicand * 2^23 is an integer of 24 bits, if rounded.
    let radicand = ((bits & 0x7fffffu) | 0x800000u) << u32(odd);
    var root = u32(sqrt(f32(radicand) * power_of_two(-23)) * power_of_two(23));
    // What the square of the root lacks. It is small, so that arithmetic modulo 2^32 gets it right.
    var lacking = i32((radicand << 23u) - root * root);
    for (var step = 0u; step < MOST_CORRECTIONS; step += 1u) {
        if (lacking > i32(root)) {
            lacking -= i32(2u * root + 1u);
            root += 1u;
        } else if (lacking <= -i32(root)) {
            lacking += i32(2u * root - 1u);
            root -= 1u;
        } else {
            break;
        }
    }
    return f32(root) * power_of_two((exponent - odd) / 2 - 23);
}

// 1 / value, for a value in [1, 2).
fn reciprocal(value: f32) -> f32 {
    let divisor = i32((bitcast<u32>(value) & 0x7fffffu) | 0x800000u);
    // The nearest integer to 2^47 / divisor, and the remainder that it leaves, as above.
    var quotient = u32(power_of_two(24) / value);
    var remainder = -i32(quotient * u32(divisor));
    for (var step = 0u; step < MOST_CORRECTIONS; step += 1u) {
        if (2 * remainder > divisor) {
            remainder -= divisor;
            quotient += 1u;
        } else if (2 * remainder < -divisor) {
            remainder += divisor;
            quotient -= 1u;
        } else {
            break;
        }
    }
    return f32(quotient) * power_of_two(-24);
}

// A number of any size: significand * 2^exponent. The bits of a significand whose magnitude is in [1, 2); or those of a zero,
// an infinity or a NaN, whose exponent means nothing.
struct Wide {
    significand: u32,
    exponent: i32,
}

// The same number; a subnormal counts for what it is.
fn wide(bits: u32) -> Wide {
    let magnitude = bits & MAGNITUDE;
    if (magnitude == 0u || magnitude >= INFINITY) {
        return Wide(bits, 0);
    }
    let own = split(magnitude);
    return Wide((bits & SIGN) | bitcast<u32>(own.significand), own.exponent);
}

// value * 2^exponent, for a normal value above zero.
fn normalized(value: f32, exponent: i32) -> Wide {
    let bits = bitcast<u32>(value);
    return Wide((bits & 0x7fffffu) | ONE, exponent + i32(bits >> 23u) - 127);
}

// a * b, for two finite numbers.
fn wide_product(a: Wide, b: Wide) -> Wide {
    let sign = (a.significand ^ b.significand) & SIGN;
    let x = a.significand & MAGNITUDE;
    let y = b.significand & MAGNITUDE;
    if (x == 0u || y == 0u) {
        return Wide(sign, 0);
    }
    let magnitude = normalized(bitcast<f32>(x) * bitcast<f32>(y), a.exponent + b.exponent);
    return Wide(sign | magnitude.significand, magnitude.exponent);
}

// The bits of the nearest f32; infinity where it is too large.
fn nearest_f32(number: Wide) -> u32 {
    let significand = number.significand & MAGNITUDE;
    if (significand == 0u || significand >= INFINITY) {
        return number.significand;
    }
    return (number.significand & SIGN) | scaled_up(bitcast<f32>(significand), number.exponent);
}
