// Clamp: every word to [low, high]. Compared as integers: NaN and -0.0 stay, subnormals too.
//
// Interface: `nothing_to_do`, `apply`. Needs float_bits.wgsl.

// The bounds as bits.
struct Bounds {
    low: u32,
    high: u32,
}

@group(0) @binding(1) var<uniform> bounds: Bounds;

fn nothing_to_do() -> bool {
    return false;
}

fn apply(words: vec4<u32>) -> vec4<u32> {
    let order = ordered(words);
    let raised = select(words, vec4(bounds.low), order < ordered(vec4(bounds.low)));
    let clamped = select(raised, vec4(bounds.high), ordered(raised) > ordered(vec4(bounds.high)));
    return select(clamped, words, (words & vec4(MAGNITUDE)) > vec4(INFINITY));
}

// Integers in the order of the floats, both zeros being 0.
fn ordered(words: vec4<u32>) -> vec4<i32> {
    let magnitude = bitcast<vec4<i32>>(words & vec4(MAGNITUDE));
    return select(magnitude, -magnitude, (words & vec4(SIGN)) != vec4(0u));
}
