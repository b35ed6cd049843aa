// Norm, after stage 2, for limits relative to the norms of the parameters: the records again, concluded with those limits.
//
//   limit = max_norm * max(norm of the parameter, floor)    where max_norm is the ratio that is allowed
//
// An invocation a segment (per_invocation.wgsl). Needs segment.wgsl, conclude.wgsl, record.wgsl, float_bits.wgsl, exact.wgsl.

@group(0) @binding(0) var<storage, read> parameter_records: array<ClipRecord>;
@group(0) @binding(4) var<storage, read_write> records: array<ClipRecord>;

fn items() -> u32 {
    return arrayLength(&segments);
}

fn each(index: u32) {
    var record = records[index];
    let norm = bitcast<u32>(parameter_records[index].total_norm);
    conclude(&record, bitcast<u32>(record.total_norm), limit_of(norm, segments[index].max_norm));
    records[index] = record;
}

// By bits where the product would not be one of finite numbers.
fn limit_of(norm: u32, ratio: f32) -> f32 {
    if ((bitcast<u32>(ratio) & MAGNITUDE) >= INFINITY) {
        return ratio;
    }
    if (norm < INFINITY) {
        return bitcast<f32>(product(bitcast<u32>(ratio), max(norm, bitcast<u32>(measure.floor))));
    }
    var special = INFINITY; // not a constant, which may not be infinite
    if (norm > INFINITY || ratio == 0.0) {
        special = NAN;
    }
    return bitcast<f32>(special);
}
