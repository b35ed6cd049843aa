// Elements of type f16: two in a word, the first in its lower half.
//
// Converted as integers, or by sums that are exact or rounded as every sum is: a device may flush the subnormals that its own
// conversions meet, and round as it likes.
//
// Interface: PER_WORD, PER_VECTOR, LOADS_AHEAD (partials.wgsl), `low_halves`, `high_halves`, `widened`, `narrowed`; the
// shorter `low_magnitudes`, `high_magnitudes` and `with_signs`; `low_finite`, `high_finite`, shorter still; and KEY, TOP,
// `magnitude_of` for keys. A key is the bits KEY
// of a word with the element in its upper half: keys are ordered as magnitudes are, and TOP is that of infinity. Needs
// float_bits.wgsl.

const PER_WORD: u32 = 2u;
const PER_VECTOR: u32 = 8u;
const LOADS_AHEAD: bool = false;
const KEY: u32 = 0x7fff0000u;
const TOP: u32 = 0x7c000000u;

// The elements 0, 2, 4, 6 of a vector, as f32.
fn low_halves(words: vec4<u32>) -> vec4<u32> {
    return from_f16(words & vec4(0xffffu));
}

// The elements 1, 3, 5, 7 of a vector, as f32.
fn high_halves(words: vec4<u32>) -> vec4<u32> {
    return from_f16(words >> vec4(16u));
}

// The f32 of element 0 or 1 of a word.
fn widened(word: u32, index: u32) -> u32 {
    return from_f16(vec4((word >> (16u * index)) & 0xffffu)).x;
}

fn from_f16(half: vec4<u32>) -> vec4<u32> {
    return ((half & vec4(0x8000u)) << vec4(16u)) | from_magnitude(half & vec4(0x7fffu));
}

// The magnitudes of the elements 0, 2, 4, 6 of a vector.
fn low_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return from_magnitude(words & vec4(0x7fffu));
}

fn high_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return from_magnitude((words >> vec4(16u)) & vec4(0x7fffu));
}

// The same where they are finite; some number where they are not.
fn low_finite(words: vec4<u32>) -> vec4<u32> {
    return from_finite(words & vec4(0x7fffu));
}

fn high_finite(words: vec4<u32>) -> vec4<u32> {
    return from_finite((words >> vec4(16u)) & vec4(0x7fffu));
}

fn from_magnitude(magnitude: vec4<u32>) -> vec4<u32> {
    let not_finite = (magnitude << vec4(13u)) | vec4(INFINITY);
    return select(from_finite(magnitude), not_finite, magnitude >= vec4(0x7c00u));
}

// The f32 of a finite magnitude. A subnormal m * 2^-24 is read as 2^-14 + m * 2^-24, and 2^-14 taken away again: exact, and
// nowhere is there an f32 that a device might flush.
fn from_finite(magnitude: vec4<u32>) -> vec4<u32> {
    let is_subnormal = magnitude < vec4(0x400u);
    let bits = (magnitude << vec4(13u)) + select(vec4(0x38000000u), vec4(0x38800000u), is_subnormal);
    let excess = select(vec4(0.0), vec4(power_of_two(-14)), is_subnormal);
    return bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) - excess);
}

// Applies the signs of `words` to what was made of their magnitudes.
fn with_signs(magnitudes: vec4<u32>, words: vec4<u32>) -> vec4<u32> {
    return magnitudes ^ (words & vec4(0x80008000u));
}

fn magnitude_of(key: u32) -> u32 {
    return from_f16(vec4(key >> 16u)).x;
}

// The nearest f16, ties to even; what is too large is infinite.
fn narrowed(bits: vec4<u32>) -> vec4<u32> {
    let magnitude = bits & vec4(MAGNITUDE);
    let rebiased = magnitude - vec4(0x38000000u);
    let normal = (rebiased + vec4(0xfffu) + ((rebiased >> vec4(13u)) & vec4(1u))) >> vec4(13u);
    // Below 2^-14: a multiple of 2^-24, which is what the last bit of a number of [0.5, 1) stands for.
    let subnormal = bitcast<vec4<u32>>(bitcast<vec4<f32>>(magnitude) + 0.5) - vec4(0x3f000000u);
    let finite = select(normal, subnormal, magnitude < vec4(0x38800000u));
    let bounded = select(finite, vec4(0x7c00u), magnitude >= vec4(0x47800000u));
    return ((bits >> vec4(16u)) & vec4(0x8000u)) | select(bounded, vec4(0x7e00u), magnitude > vec4(INFINITY));
}
