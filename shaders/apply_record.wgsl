// A gradient's element times the factor of a record, for the shaders of others.
//
// Interface: `clip_record_scaled`. Needs record.wgsl, and nothing else.

// gradient * record.factor, also where that factor is less than any normal f32 and a device would take it for 0.
fn clip_record_scaled(record: ClipRecord, gradient: f32) -> f32 {
    let bits = bitcast<u32>(gradient);
    let field = i32((bits >> 23u) & 0xffu);
    if (record.factor_exponent >= -126 || field == 255) {
        return gradient * record.factor;
    }
    // By exponents and significands. A subnormal element times such a factor is 0.
    let significand = bitcast<f32>((bits & 0x7fffffu) | 0x3f800000u) * record.factor_significand;
    let product = bitcast<u32>(significand);
    // The exponent field of the product, and 64 more: it may be subnormal.
    let raised = i32((product >> 23u) & 0xffu) + field - 127 + record.factor_exponent + 64;
    let sign = (bits & 0x80000000u) ^ (product & 0x80000000u);
    if (field == 0 || raised <= 0) {
        return bitcast<f32>(sign);
    }
    return bitcast<f32>(sign | (u32(raised) << 23u) | (product & 0x7fffffu)) * bitcast<f32>(0x1f800000u); // 2^-64
}
