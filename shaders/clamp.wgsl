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

fn is_plain(target_index: u32) -> bool {
    return true;
}

fn apply(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    let own = bounds[target_index * SEGMENTED];
    return clamped(bits, own.low, own.high, INFINITY);
}

fn apply_plain(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    return apply(bits, target_index);
}

// Of floats whose infinity has the bits `infinity`, and as upper bits of a word their sign and exponent.
fn clamped(bits: vec4<u32>, low: u32, high: u32, infinity: u32) -> vec4<u32> {
    let raised = select(bits, vec4(low), ordered(bits) < ordered(vec4(low)));
    let lowered = select(raised, vec4(high), ordered(raised) > ordered(vec4(high)));
    return select(lowered, bits, (bits & vec4(MAGNITUDE)) > vec4(infinity));
}

// Integers in the order of the floats, both zeros being 0.
fn ordered(bits: vec4<u32>) -> vec4<i32> {
    let magnitude = bitcast<vec4<i32>>(bits & vec4(MAGNITUDE));
    return select(magnitude, -magnitude, (bits & vec4(SIGN)) != vec4(0u));
}
