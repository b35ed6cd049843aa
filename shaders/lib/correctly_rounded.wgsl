// Square root and reciprocal of f32, rounded to nearest on every adapter.
//
// WGSL lets a division and a square root be off by several units in the last place. The functions start from the device's
// estimate and settle the last bit by integers.
//
// provides: square_root, reciprocal
// requires: float_bits

// Exceeds the error of any device's estimate, in units in the last place. It bounds the loops, whatever a device returns.
const MAX_CORRECTIONS: u32 = 16u;

// Returns the square root of a normal value above zero.
fn square_root(value: f32) -> f32 {
    let bits = bitcast<u32>(value);
    let exponent = i32(bits >> 23u) - 127;
    let odd = exponent & 1;
    // value = radicand * 2^(exponent - odd - 23). The rounded root of radicand * 2^23 is an integer of 24 bits.
    let radicand = ((bits & 0x7fffffu) | 0x800000u) << u32(odd);
    var root = u32(sqrt(f32(radicand) * power_of_two(-23)) * power_of_two(23));
    // The remainder radicand * 2^23 - root^2. It is small, so arithmetic modulo 2^32 is exact.
    var remainder = i32((radicand << 23u) - root * root);
    for (var step = 0u; step < MAX_CORRECTIONS; step += 1u) {
        if (remainder > i32(root)) {
            remainder -= i32(2u * root + 1u);
            root += 1u;
        } else if (remainder <= -i32(root)) {
            remainder += i32(2u * root - 1u);
            root -= 1u;
        } else {
            break;
        }
    }
    return f32(root) * power_of_two((exponent - odd) / 2 - 23);
}

// Returns 1 / value for a value in [1, 2).
fn reciprocal(value: f32) -> f32 {
    let divisor = i32((bitcast<u32>(value) & 0x7fffffu) | 0x800000u);
    // The nearest integer to 2^47 / divisor, and its remainder, also modulo 2^32.
    var quotient = u32(power_of_two(24) / value);
    var remainder = -i32(quotient * u32(divisor));
    for (var step = 0u; step < MAX_CORRECTIONS; step += 1u) {
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
