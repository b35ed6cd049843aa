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

// Whether a native multiplication suffices: f32 holds the factor, and no measured element is infinite or NaN.
fn is_plain(target_index: u32) -> bool {
    let record = &records[target_index * SEGMENTED];
    let is_in_range = u32((*record).factor_exponent + 126) < 254u;
    return ((*record).flags & CLIP_RECORD_NON_FINITE) == 0u && is_in_range;
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
    return ieee_product(bits, Wide(bitcast<u32>((*record).factor_significand), (*record).factor_exponent));
}

// The product where a device that knows no NaN, no infinity and no subnormal factor might make something else of it.
fn ieee_product(bits: vec4<u32>, factor: Wide) -> vec4<u32> {
    let not_finite = (bits & vec4(INFINITY)) == vec4(INFINITY);
    let is_zero = (factor.significand & MAGNITUDE) == 0u;
    let is_nan = (factor.significand & MAGNITUDE) > INFINITY;
    let finite = vec4(
        nearest_f32(wide_product(wide(bits.x), factor)),
        nearest_f32(wide_product(wide(bits.y), factor)),
        nearest_f32(wide_product(wide(bits.z), factor)),
        nearest_f32(wide_product(wide(bits.w), factor)),
    );
    let infinite = select(bits ^ vec4(factor.significand & SIGN), vec4(NAN), vec4(is_zero));
    return select(select(finite, infinite, not_finite), vec4(NAN), vec4(is_nan));
}
