// Norm, for one that the caller supplies: the record that follows from it.
//
// An invocation a segment (per_invocation.wgsl). Needs segment.wgsl, conclude.wgsl, record.wgsl, float_bits.wgsl, exact.wgsl.

@group(0) @binding(0) var<storage, read> supplied: array<f32>; // one, without the loss scale
@group(0) @binding(4) var<storage, read_write> records: array<ClipRecord>;

fn items() -> u32 {
    return arrayLength(&segments);
}

fn each(index: u32) {
    var norm = wide(bitcast<u32>(supplied[0]));
    if ((norm.significand & SIGN) != 0u) {
        // A zero has no sign here, and nothing negative is a norm.
        norm = Wide(select(NAN, 0u, norm.significand == SIGN), 0);
    }
    var record: ClipRecord;
    record.norm_significand = bitcast<f32>(norm.significand);
    record.norm_exponent = norm.exponent;
    record.first_non_finite = NO_GRADIENT;
    conclude(&record, wide(bitcast<u32>(segments[index].max_norm)));
    records[index] = record;
}
