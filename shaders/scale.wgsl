// Scale: every element times the factor of a record.
//
// Where the factor is 1 the workgroups return before they have read a gradient. A host that knew would not
// dispatch them at all, but a host that knows has waited for the GPU.
//
// Interface of the operations: `nothing_to_do`; `apply`, on the bits of f32; `apply_plain`, a shorter one where `is_plain`.
// `target_index` is that of the tile. Needs record.wgsl, float_bits.wgsl, exact.wgsl.

@group(0) @binding(1) var<storage, read> records: array<ClipRecord>;

// 1 where tiles obey different records; 0 where there is but one, so that nobody waits for a tile to learn which.
override SEGMENTED: u32;

fn nothing_to_do(target_index: u32) -> bool {
    return bitcast<u32>(records[target_index * SEGMENTED].factor) == ONE;
}

// Whether a native multiplication suffices: the factor is normal or zero, and no measured element is infinite or NaN.
fn is_plain(target_index: u32) -> bool {
    let record = &records[target_index * SEGMENTED];
    let is_subnormal = (bitcast<u32>((*record).factor) & MAGNITUDE) - 1u < SMALLEST_NORMAL - 1u;
    return ((*record).flags & CLIP_RECORD_NON_FINITE) == 0u && !is_subnormal;
}

fn apply_plain(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    return bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) * records[target_index * SEGMENTED].factor);
}

fn apply(bits: vec4<u32>, target_index: u32) -> vec4<u32> {
    if (is_plain(target_index)) {
        return apply_plain(bits, target_index);
    }
    let record = &records[target_index * SEGMENTED];
    if (((*record).flags & CLIP_RECORD_ZERO) != 0u) {
        return vec4<u32>();
    }
    return ieee_product(bits, bitcast<u32>((*record).factor));
}

// The product where a device that knows no NaN, no infinity and no subnormal factor might make something else of it.
fn ieee_product(bits: vec4<u32>, factor: u32) -> vec4<u32> {
    let not_finite = (bits & vec4(INFINITY)) == vec4(INFINITY);
    let is_zero = (factor & MAGNITUDE) == 0u;
    let is_nan = (factor & MAGNITUDE) > INFINITY;
    let finite = vec4(
        product(bits.x, factor),
        product(bits.y, factor),
        product(bits.z, factor),
        product(bits.w, factor),
    );
    let infinite = select(bits, vec4(NAN), vec4(is_zero));
    return select(select(finite, infinite, not_finite), vec4(NAN), vec4(is_nan));
}
