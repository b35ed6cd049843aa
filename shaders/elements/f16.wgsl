// Elements of type f16: two in each word, the even one in the lower half.
//
// Conversions use integers and f32 sums, because a device's conversions may flush subnormals and may round either way.
//
// `widen_even` and `widen_odd` convert the even or the odd elements of four words to the bits of f32. `widen_*_magnitudes` may
// drop the signs, which is cheaper; `with_signs` restores them. `widen_*_finite` is cheaper still, and returns an arbitrary
// number for an element that is not finite. A key is a word with an element in its upper half, masked by KEY_MASK: keys are
// ordered as magnitudes are, and the key of infinity is INFINITY_KEY. PREFETCH is set if the elements leave registers to load
// the next block ahead.
//
// provides: ELEMENTS_PER_WORD, ELEMENTS_PER_VECTOR, PREFETCH, KEY_MASK, INFINITY_KEY, magnitude_of_key, widen_even, widen_odd,
//   widen_even_magnitudes, widen_odd_magnitudes, widen_even_finite, widen_odd_finite, with_signs, widen_element, narrow
// requires: float_bits

const ELEMENTS_PER_WORD: u32 = 2u;
const ELEMENTS_PER_VECTOR: u32 = 8u;
const PREFETCH: bool = false;
const KEY_MASK: u32 = 0x7fff0000u;
const INFINITY_KEY: u32 = 0x7c000000u;

fn widen_even(words: vec4<u32>) -> vec4<u32> {
    return widen_f16(words & vec4(0xffffu));
}

fn widen_odd(words: vec4<u32>) -> vec4<u32> {
    return widen_f16(words >> vec4(16u));
}

// Returns the f32 of the even (0) or odd (1) element of a word.
fn widen_element(word: u32, index: u32) -> u32 {
    return widen_f16(vec4((word >> (16u * index)) & 0xffffu)).x;
}

fn widen_f16(half: vec4<u32>) -> vec4<u32> {
    return ((half & vec4(0x8000u)) << vec4(16u)) | widen_magnitude(half & vec4(0x7fffu));
}

fn widen_even_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return widen_magnitude(words & vec4(0x7fffu));
}

fn widen_odd_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return widen_magnitude((words >> vec4(16u)) & vec4(0x7fffu));
}

fn widen_even_finite(words: vec4<u32>) -> vec4<u32> {
    return widen_finite(words & vec4(0x7fffu));
}

fn widen_odd_finite(words: vec4<u32>) -> vec4<u32> {
    return widen_finite((words >> vec4(16u)) & vec4(0x7fffu));
}

fn widen_magnitude(magnitude: vec4<u32>) -> vec4<u32> {
    let not_finite = (magnitude << vec4(13u)) | vec4(INFINITY);
    return select(widen_finite(magnitude), not_finite, magnitude >= vec4(0x7c00u));
}

// Returns the f32 of a finite magnitude. A subnormal m * 2^-24 is built as 2^-14 + m * 2^-24, and 2^-14 is subtracted: the
// result is exact, and no step has an f32 that a device could flush.
fn widen_finite(magnitude: vec4<u32>) -> vec4<u32> {
    let is_subnormal = magnitude < vec4(0x400u);
    let bits = (magnitude << vec4(13u)) + select(vec4(0x38000000u), vec4(0x38800000u), is_subnormal);
    let excess = select(vec4(0.0), vec4(power_of_two(-14)), is_subnormal);
    return bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) - excess);
}

// Applies the signs of `words` to packed magnitudes.
fn with_signs(magnitudes: vec4<u32>, words: vec4<u32>) -> vec4<u32> {
    return magnitudes ^ (words & vec4(0x80008000u));
}

fn magnitude_of_key(key: u32) -> u32 {
    return widen_f16(vec4(key >> 16u)).x;
}

// Returns the nearest f16, ties to even; a magnitude that is too large becomes infinity.
fn narrow(bits: vec4<u32>) -> vec4<u32> {
    let magnitude = bits & vec4(MAGNITUDE);
    let rebiased = magnitude - vec4(0x38000000u);
    let normal = (rebiased + vec4(0xfffu) + ((rebiased >> vec4(13u)) & vec4(1u))) >> vec4(13u);
    // Below 2^-14, an f16 is a multiple of 2^-24: the last bit of an f32 in [0.5, 1).
    let subnormal = bitcast<vec4<u32>>(bitcast<vec4<f32>>(magnitude) + 0.5) - vec4(0x3f000000u);
    let finite = select(normal, subnormal, magnitude < vec4(0x38800000u));
    let bounded = select(finite, vec4(0x7c00u), magnitude >= vec4(0x47800000u));
    return ((bits >> vec4(16u)) & vec4(0x8000u)) | select(bounded, vec4(0x7e00u), magnitude > vec4(INFINITY));
}
