// Elements of type f32: one in each word, and no odd ones. See f16.wgsl for the names.
//
// provides: ELEMENTS_PER_WORD, ELEMENTS_PER_VECTOR, PREFETCH, KEY_MASK, INFINITY_KEY, magnitude_of_key, widen_even, widen_odd,
//   widen_even_magnitudes, widen_odd_magnitudes, widen_even_finite, widen_odd_finite, with_signs, widen_element, narrow
// requires: float_bits

const ELEMENTS_PER_WORD: u32 = 1u;
const ELEMENTS_PER_VECTOR: u32 = 4u;
const PREFETCH: bool = true;
const KEY_MASK: u32 = MAGNITUDE;
const INFINITY_KEY: u32 = INFINITY;

// A key is the magnitude itself.
fn magnitude_of_key(key: u32) -> u32 {
    return key;
}

fn widen_even(words: vec4<u32>) -> vec4<u32> {
    return words;
}

fn widen_odd(words: vec4<u32>) -> vec4<u32> {
    return vec4<u32>();
}

fn widen_even_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return words;
}

fn widen_odd_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return vec4<u32>();
}

fn widen_even_finite(words: vec4<u32>) -> vec4<u32> {
    return words;
}

fn widen_odd_finite(words: vec4<u32>) -> vec4<u32> {
    return vec4<u32>();
}

fn with_signs(magnitudes: vec4<u32>, words: vec4<u32>) -> vec4<u32> {
    return magnitudes;
}

fn widen_element(word: u32, index: u32) -> u32 {
    return word;
}

fn narrow(bits: vec4<u32>) -> vec4<u32> {
    return bits;
}
