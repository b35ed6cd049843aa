// Scale: every word times the coefficient of the record.
//
// Where the coefficient is 1 the workgroups return before they have read a gradient. A host that knew would not
// dispatch them at all, but a host that knows has waited for the GPU.
//
// Interface: `nothing_to_do`, `apply`. Needs record.wgsl, float_bits.wgsl.

@group(0) @binding(1) var<uniform> record: ClipRecord;

fn nothing_to_do() -> bool {
    return bitcast<u32>(record.clip_coef) == ONE;
}

fn apply(words: vec4<u32>) -> vec4<u32> {
    if ((record.flags & CLIP_RECORD_NON_FINITE) != 0u) {
        return times_zero_or_nan(words, bitcast<u32>(record.clip_coef));
    }
    return bitcast<vec4<u32>>(bitcast<vec4<f32>>(words) * record.clip_coef);
}

// IEEE multiplication by the only coefficients that a norm which is not finite can have, on bits.
fn times_zero_or_nan(words: vec4<u32>, coef: u32) -> vec4<u32> {
    let not_finite = (words & vec4(INFINITY)) == vec4(INFINITY);
    let zeros = (words ^ vec4(coef)) & vec4(SIGN);
    return select(zeros, vec4(NAN), not_finite | vec4((coef & MAGNITUDE) > INFINITY));
}
