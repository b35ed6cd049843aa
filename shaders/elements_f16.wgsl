// Elements of type f16: two in a word, the first in its lower half.
//
// Converted as integers: a device may flush the subnormals that its own conversions meet, and round as it likes.
//
// Interface: PER_WORD, PER_VECTOR, `low_halves`, `high_halves`, `widened`, `narrowed`. Needs float_bits.wgsl.

const PER_WORD: u32 = 2u;
const PER_VECTOR: u32 = 8u;

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
    let magnitude = half & vec4(0x7fffu);
    let normal = (magnitude << vec4(13u)) + vec4(0x38000000u);
    let subnormal = bitcast<vec4<u32>>(vec4<f32>(magnitude) * power_of_two(-24));
    let not_finite = (magnitude << vec4(13u)) | vec4(INFINITY);
    let finite = select(normal, subnormal, magnitude < vec4(0x400u));
    return ((half & vec4(0x8000u)) << vec4(16u)) | select(finite, not_finite, magnitude >= vec4(0x7c00u));
}

// The nearest f16, ties to even; what is too large is infinite.
fn narrowed(bits: vec4<u32>) -> vec4<u32> {
    let magnitude = bits & vec4(MAGNITUDE);
    let rebiased = magnitude - vec4(0x38000000u);
    let normal = (rebiased + vec4(0xfffu) + ((rebiased >> vec4(13u)) & vec4(1u))) >> vec4(13u);
    let finite = select(normal, subnormal_f16(magnitude), magnitude < vec4(0x38800000u));
    let bounded = select(finite, vec4(0x7c00u), magnitude >= vec4(0x47800000u));
    return ((bits >> vec4(16u)) & vec4(0x8000u)) | select(bounded, vec4(0x7e00u), magnitude > vec4(INFINITY));
}

// Below 2^-14: a multiple of 2^-24. Half of that is 2^-25, and what is less becomes 0.
fn subnormal_f16(magnitude: vec4<u32>) -> vec4<u32> {
    let drop = clamp(vec4(126u) - (magnitude >> vec4(23u)), vec4(14u), vec4(25u));
    let significand = (magnitude & vec4(0x7fffffu)) | vec4(0x800000u);
    let kept = significand >> drop;
    let rest = significand & ((vec4(1u) << drop) - vec4(1u));
    let half = vec4(1u) << (drop - vec4(1u));
    let up = (rest > half) | ((rest == half) & ((kept & vec4(1u)) == vec4(1u)));
    return kept + select(vec4(0u), vec4(1u), up);
}
