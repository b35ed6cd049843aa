// Norm, for one that the caller supplies: the record that follows from it.
//
// An invocation a segment (per_invocation.wgsl). Needs segment.wgsl, conclude.wgsl, record.wgsl, float_bits.wgsl, exact.wgsl.

@group(0) @binding(0) var<storage, read> supplied: array<u32>; // the bits of one, without the loss scale
@group(0) @binding(4) var<storage, read_write> records: array<ClipRecord>;

// What stands there until a norm is supplied: a NaN that no computation has for its outcome.
const NOT_SUPPLIED: u32 = 0xffffffffu;

fn items() -> u32 {
    return arrayLength(&segments);
}

fn each(index: u32) {
    var record: ClipRecord;
    record.first_non_finite = NO_GRADIENT;
    if (supplied[0] == NOT_SUPPLIED) {
        record.clip_coef = 1.0;
        record.factor = 1.0;
        record.factor_significand = 1.0;
        record.norm_exponent = EMPTY_EXPONENT;
        record.flags = CLIP_RECORD_NORM_MISSING;
        records[index] = record;
        return;
    }
    var norm = wide(supplied[0]);
    if ((norm.significand & SIGN) != 0u) {
        // A zero has no sign here, and nothing negative is a norm.
        norm = Wide(select(NAN, 0u, norm.significand == SIGN), 0);
    }
    record.norm_significand = bitcast<f32>(norm.significand);
    record.norm_exponent = norm.exponent;
    conclude(&record, wide(bitcast<u32>(segments[index].max_norm)));
    records[index] = record;
}
