// Elements of type f32: a word each.
//
// Interface: PER_WORD, PER_VECTOR, `widened`.

const PER_WORD: u32 = 1u;
const PER_VECTOR: u32 = 4u;

// The f32 of an element of a word; there is only one.
fn widened(word: u32, index: u32) -> u32 {
    return word;
}
