// Elements of type bf16: two in each word, the even one in the lower half; each is the upper half of an f32.
//
// See f16.wgsl for the names. The cheaper variants keep the signs, which cost nothing here.
//
// provides: ELEMENTS_PER_WORD, ELEMENTS_PER_VECTOR, PREFETCH, KEY_MASK, INFINITY_KEY, magnitude_of_key, widen_even, widen_odd,
//   widen_even_magnitudes, widen_odd_magnitudes, widen_even_finite, widen_odd_finite, with_signs, widen_element, narrow
// requires: float_bits

const ELEMENTS_PER_WORD: u32 = 2u;
const ELEMENTS_PER_VECTOR: u32 = 8u;
const PREFETCH: bool = false;
const KEY_MASK: u32 = 0x7fff0000u;
const INFINITY_KEY: u32 = INFINITY;

fn widen_even(words: vec4<u32>) -> vec4<u32> {
    return words << vec4(16u);
}

fn widen_odd(words: vec4<u32>) -> vec4<u32> {
    return words & vec4(0xffff0000u);
}

fn widen_even_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return widen_even(words);
}

fn widen_odd_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return widen_odd(words);
}

fn widen_even_finite(words: vec4<u32>) -> vec4<u32> {
    return widen_even(words);
}

fn widen_odd_finite(words: vec4<u32>) -> vec4<u32> {
    return widen_odd(words);
}

fn with_signs(magnitudes: vec4<u32>, words: vec4<u32>) -> vec4<u32> {
    return magnitudes;
}

// A key is the magnitude itself.
fn magnitude_of_key(key: u32) -> u32 {
    return key;
}

// Returns the f32 of the even (0) or odd (1) element of a word.
fn widen_element(word: u32, index: u32) -> u32 {
    return select(word << 16u, word & 0xffff0000u, index == 1u);
}

// Returns the nearest bf16, ties to even; a magnitude that is too large becomes infinity.
fn narrow(bits: vec4<u32>) -> vec4<u32> {
    let rounded = (bits + vec4(0x7fffu) + ((bits >> vec4(16u)) & vec4(1u))) >> vec4(16u);
    let quiet = (bits >> vec4(16u)) | vec4(0x40u);
    return select(rounded, quiet, (bits & vec4(MAGNITUDE)) > vec4(INFINITY));
}
