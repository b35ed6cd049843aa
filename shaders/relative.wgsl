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
    conclude(&record, limit_of(wide_norm(parameter_records[index]), segments[index].max_norm));
    records[index] = record;
}

// By bits where the product would not be one of finite numbers.
fn limit_of(norm: Wide, max_norm: f32) -> Wide {
    let ratio = wide(bitcast<u32>(max_norm));
    if ((ratio.significand & MAGNITUDE) >= INFINITY) {
        return ratio;
    }
    if (norm.significand >= INFINITY) {
        return Wide(select(INFINITY, NAN, norm.significand > INFINITY || ratio.significand == 0u), 0);
    }
    return wide_product(ratio, larger(norm, wide(bitcast<u32>(measure.floor))));
}

// Of two finite numbers that are not negative.
fn larger(a: Wide, b: Wide) -> Wide {
    if (a.significand == 0u) {
        return b;
    }
    let is_a = b.significand == 0u || a.exponent > b.exponent
        || (a.exponent == b.exponent && a.significand >= b.significand);
    if (is_a) {
        return a;
    }
    return b;
}
