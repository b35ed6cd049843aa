// Gradients of type f16: two in each word, the even one in the lower half. No device feature is needed. The conversions use
// only integers, because the device's conversions may flush subnormals and may round either way.

// Returns the bits of gradient `i` as an f32.
fn element_bits(i: u32) -> u32 {
    return f32_of_f16((gradients[i / 2u] >> (16u * (i % 2u))) & 0xffffu);
}

// Returns the bits of the nearest f16, as an f32; ties to even. A magnitude that is too large becomes infinity.
fn rounded_to_element(bits: u32) -> u32 {
    return f32_of_f16(f16_of_f32(bits));
}

fn f32_of_f16(half: u32) -> u32 {
    let sign = (half & 0x8000u) << 16u;
    let magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) { // an infinity or a NaN
        return sign | 0x7f800000u | (magnitude << 13u);
    }
    if (magnitude >= 0x400u) {
        return sign | ((magnitude << 13u) + 0x38000000u);
    }
    if (magnitude == 0u) {
        return sign;
    }
    // A subnormal of f16 is magnitude * 2^-24, a normal number of f32.
    let exponent = firstLeadingBit(magnitude);
    return sign | ((exponent + 103u) << 23u) | ((magnitude << (23u - exponent)) & 0x7fffffu);
}

fn f16_of_f32(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return sign | 0x7e00u;
    }
    if (magnitude >= 0x47800000u) { // 2^16
        return sign | 0x7c00u;
    }
    if (magnitude >= 0x38800000u) { // 2^-14, the smallest normal f16. A carry out of the significand raises the exponent.
        return sign | to_nearest(magnitude - 0x38000000u, 13u);
    }
    if (magnitude < 0x33000000u) { // below 2^-25, half of the smallest subnormal
        return sign;
    }
    // The result is a multiple of 2^-24.
    return sign | to_nearest((magnitude & 0x7fffffu) | 0x800000u, 126u - (magnitude >> 23u));
}

// Returns value / 2^shift, rounded to nearest, ties to even.
fn to_nearest(value: u32, shift: u32) -> u32 {
    return (value + (1u << (shift - 1u)) - 1u + ((value >> shift) & 1u)) >> shift;
}
