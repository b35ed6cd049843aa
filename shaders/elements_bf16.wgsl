// Elements of type bf16: two in a word, the first in its lower half; each is the upper half of an f32.
//
// Interface: that of elements_f16.wgsl. Needs float_bits.wgsl.

const PER_WORD: u32 = 2u;
const PER_VECTOR: u32 = 8u;
const LOADS_AHEAD: bool = false;
const KEY: u32 = 0x7fff0000u;
const TOP: u32 = INFINITY;

// The elements 0, 2, 4, 6 of a vector, as f32.
fn low_halves(words: vec4<u32>) -> vec4<u32> {
    return words << vec4(16u);
}

// The elements 1, 3, 5, 7 of a vector, as f32.
fn high_halves(words: vec4<u32>) -> vec4<u32> {
    return words & vec4(0xffff0000u);
}

// There is no shorter way, and signs cost nothing.
fn low_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return low_halves(words);
}

fn high_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return high_halves(words);
}

fn low_finite(words: vec4<u32>) -> vec4<u32> {
    return low_halves(words);
}

fn high_finite(words: vec4<u32>) -> vec4<u32> {
    return high_halves(words);
}

fn with_signs(magnitudes: vec4<u32>, words: vec4<u32>) -> vec4<u32> {
    return magnitudes;
}

// A key is the magnitude itself.
fn magnitude_of(key: u32) -> u32 {
    return key;
}

// The f32 of element 0 or 1 of a word.
fn widened(word: u32, index: u32) -> u32 {
    return select(word << 16u, word & 0xffff0000u, index == 1u);
}

// The nearest bf16, ties to even; what is too large is infinite.
fn narrowed(bits: vec4<u32>) -> vec4<u32> {
    let rounded = (bits + vec4(0x7fffu) + ((bits >> vec4(16u)) & vec4(1u))) >> vec4(16u);
    let quiet = (bits >> vec4(16u)) | vec4(0x40u);
    return select(rounded, quiet, (bits & vec4(MAGNITUDE)) > vec4(INFINITY));
}
