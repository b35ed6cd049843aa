// f32 as integer bits. WGSL lets a compiler assume that no NaN and no infinity exists, and flush subnormals. Neither
// applies to integers, so everything that must hold for every input is decided on integers.
//
// provides: SIGN, MAGNITUDE, INFINITY, NAN, ONE, SMALLEST_NORMAL, exponent_of, power_of_two, scale_down, scale_down_all,
//   scale_up

const SIGN: u32 = 0x80000000u;
const MAGNITUDE: u32 = 0x7fffffffu;
const INFINITY: u32 = 0x7f800000u; // a magnitude above it is a NaN
const NAN: u32 = 0x7fc00000u;
const ONE: u32 = 0x3f800000u;
const SMALLEST_NORMAL: u32 = 0x00800000u;

// Returns floor(log2) of a finite magnitude that is not zero.
fn exponent_of(magnitude: u32) -> i32 {
    let field = i32(magnitude >> 23u);
    return select(i32(firstLeadingBit(magnitude)) - 149, field - 127, field != 0);
}

// Returns 2^exponent for -126 <= exponent <= 127.
fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// Returns magnitude * 2^-exponent for a finite magnitude, if the result is below 2^2; a result below 2^-76 becomes 0.
// Subnormals are converted as integers, so that an adapter that flushes them does not lose them.
fn scale_down(magnitude: u32, exponent: i32) -> f32 {
    let field = magnitude >> 23u;
    let significand = (magnitude & 0x7fffffu) | select(0u, 0x800000u, field != 0u);
    let power = max(i32(field), 1) - 150 - exponent;
    return select(0.0, f32(significand) * power_of_two(max(power, -100)), power > -100);
}

fn scale_down_all(bits: vec4<u32>, exponent: i32) -> vec4<f32> {
    let m = bits & vec4(MAGNITUDE);
    return vec4(
        scale_down(m.x, exponent),
        scale_down(m.y, exponent),
        scale_down(m.z, exponent),
        scale_down(m.w, exponent),
    );
}

// Returns the bits of value * 2^exponent for a normal value above zero. A subnormal result is rounded to nearest, ties to
// even; a result that is too large is infinity.
fn scale_up(value: f32, exponent: i32) -> u32 {
    let bits = bitcast<u32>(value);
    let field = i32(bits >> 23u) + exponent;
    if (field >= 255) {
        return INFINITY;
    }
    if (field > 0) {
        return (bits & 0x7fffffu) | (u32(field) << 23u);
    }
    let significand = (bits & 0x7fffffu) | 0x800000u;
    let drop = u32(1 - field);
    if (drop > 24u) {
        return 0u;
    }
    let kept = significand >> drop;
    let rest = significand & ((1u << drop) - 1u);
    let half = 1u << (drop - 1u);
    return kept + select(0u, 1u, rest > half || (rest == half && (kept & 1u) == 1u));
}
