// Clamp: every element to [low, high]. Compared as integers: NaN and -0.0 stay, subnormals too.
//
// An operation; see scale.wgsl for the interface. Needs float_bits.wgsl.

// The bounds as bits of f32, though rounded to the type of the elements.
struct Bounds {
    low: u32,
    high: u32,
}

@group(0) @binding(1) var<storage, read> bounds: array<Bounds>;

// 1 where tiles belong to groups with different bounds; see scale.wgsl.
override SEGMENTED: u32;

fn nothing_to_do(target_index: u32) -> bool {
    return false;
}

fn apply(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    let low = vec4(bounds[target_index * SEGMENTED].low);
    let high = vec4(bounds[target_index * SEGMENTED].high);
    let raised = select(bits, low, ordered(bits) < ordered(low));
    let clamped = select(raised, high, ordered(raised) > ordered(high));
    return select(clamped, bits, (bits & vec4(MAGNITUDE)) > vec4(INFINITY));
}

// Integers in the order of the floats, both zeros being 0.
fn ordered(bits: vec4<u32>) -> vec4<i32> {
    let magnitude = bitcast<vec4<i32>>(bits & vec4(MAGNITUDE));
    return select(magnitude, -magnitude, (bits & vec4(SIGN)) != vec4(0u));
}
