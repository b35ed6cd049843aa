// Elements of type f32: a word each.
//
// Interface: PER_WORD, PER_VECTOR, LOADS_AHEAD, KEY, TOP, `widened`, `magnitude_of`. Needs float_bits.wgsl.

const PER_WORD: u32 = 1u;
const PER_VECTOR: u32 = 4u;
const LOADS_AHEAD: bool = true;
const KEY: u32 = MAGNITUDE;
const TOP: u32 = INFINITY;

// The f32 of an element of a word; there is only one.
fn widened(word: u32, index: u32) -> u32 {
    return word;
}

// The f32 of a key; see elements_f16.wgsl. Here it is the magnitude itself.
fn magnitude_of(key: u32) -> u32 {
    return key;
}
