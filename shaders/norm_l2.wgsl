// The L2 norm, as a sum of squares that neither overflows nor vanishes.
//
// A tile whose largest magnitude is so large or so small that plain squares would leave f32 is summed again, scaled
// by the power of two that brings its largest magnitude to [1, 2); its partial is marked RESCUED.
//
// Interface: `Partial`, `combine`, `accumulate`, `accumulate_rescued`, `needs_rescue`, RESCUED. Needs float_bits.wgsl.

struct Partial {
    sum: f32,     // of the squares; of the scaled squares where RESCUED is set
    largest: u32, // the largest magnitude, as bits; RESCUED is its sign bit
}

const RESCUED: u32 = SIGN;

// Plain squares are right for a largest magnitude of 2^-40 to 2^45: the square of what is smaller by so much that
// it underflows cannot be seen in the sum, and 2^37 squares do not overflow it.
const SMALLEST_PLAIN: u32 = 0x2b800000u;
const LARGEST_PLAIN: u32 = 0x56000000u;

fn needs_rescue(largest: u32) -> bool {
    let plain = largest == 0u || (largest >= SMALLEST_PLAIN && largest <= LARGEST_PLAIN);
    return !plain && largest < INFINITY;
}

fn combine(a: Partial, b: Partial) -> Partial {
    let largest = max(a.largest & MAGNITUDE, b.largest & MAGNITUDE);
    return Partial(a.sum + b.sum, largest | ((a.largest | b.largest) & RESCUED));
}

fn accumulate(sum: vec4<f32>, words: vec4<u32>) -> vec4<f32> {
    let g = bitcast<vec4<f32>>(words);
    return fma(g, g, sum);
}

fn accumulate_rescued(sum: vec4<f32>, words: vec4<u32>, exponent: i32) -> vec4<f32> {
    let m = words & vec4(MAGNITUDE);
    let g = vec4(
        scaled_down(m.x, exponent),
        scaled_down(m.y, exponent),
        scaled_down(m.z, exponent),
        scaled_down(m.w, exponent),
    );
    return fma(g, g, sum);
}
