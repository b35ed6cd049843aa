// Norm, for one that the caller supplies: the record that follows from it.
//
// An invocation a segment (per_invocation.wgsl). Needs segment.wgsl, conclude.wgsl, record.wgsl, float_bits.wgsl, exact.wgsl.

@group(0) @binding(0) var<storage, read> supplied: array<f32>; // one, without the loss scale
@group(0) @binding(4) var<storage, read_write> records: array<ClipRecord>;

fn items() -> u32 {
    return arrayLength(&segments);
}

fn each(index: u32) {
    let norm = bitcast<u32>(supplied[0]);
    var record: ClipRecord;
    if (norm != 0u && norm < INFINITY) {
        record.norm_exponent = exponent_of(norm);
        record.norm_significand = scaled_down(norm, record.norm_exponent);
    } else {
        record.norm_significand = supplied[0];
    }
    record.first_non_finite = NO_GRADIENT;
    conclude(&record, norm, segments[index].max_norm);
    records[index] = record;
}
