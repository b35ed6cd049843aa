// The outcome of a clip by norm. 40 bytes; `ClipRecord` in Rust. Callers include this file in their shaders
// (`CLIP_RECORD_WGSL`), so all its names start with `ClipRecord`, `CLIP_RECORD` or `clip_record`, and it requires nothing.
//
// provides: ClipRecord, CLIP_RECORD_CLIPPED, CLIP_RECORD_NON_FINITE, CLIP_RECORD_SKIP, CLIP_RECORD_ZERO,
//   CLIP_RECORD_UNMEASURED, CLIP_RECORD_NORM_MISSING, CLIP_RECORD_SCALE_AT_FLOOR, CLIP_RECORD_PART_MISSING,
//   CLIP_RECORD_NO_GRADIENT, CLIP_RECORD_EMPTY_EXPONENT, clip_record_has_norm, clip_record_scaled

struct ClipRecord {
    total_norm: f32,         // offset  0: the norm before clipping, without the loss scale; a NaN if there is no norm
    clip_coef: f32,          // offset  4: the coefficient that brings the norm to the limit; exactly 1 within it
    factor: f32,             // offset  8: the multiplier of every element: clip_coef, inverse loss scale and policy
    max_magnitude: f32,      // offset 12: the largest |g|, without the loss scale; NaN if any element is NaN
    flags: u32,              // offset 16: the CLIP_RECORD_* bits below
    first_non_finite: u32,   // offset 20: the index of the first gradient with an infinity or a NaN, or NO_GRADIENT
    norm_significand: f32,   // offset 24: the norm again, as significand * 2^exponent, where an f32 would overflow
    norm_exponent: i32,      // offset 28
    factor_significand: f32, // offset 32: the factor again, as significand * 2^exponent, where an f32 would be subnormal or 0
    factor_exponent: i32,    // offset 36
}

const CLIP_RECORD_CLIPPED: u32 = 1u;       // the coefficient is not 1
const CLIP_RECORD_NON_FINITE: u32 = 2u;    // an element, a supplied norm or a limit is infinite or NaN
const CLIP_RECORD_SKIP: u32 = 4u;          // skip this step: it is non-finite under that policy, or its norm exceeds skip_above
const CLIP_RECORD_ZERO: u32 = 8u;          // non-finite, and the policy is to zero all gradients
const CLIP_RECORD_UNMEASURED: u32 = 16u;   // no norm pass has run yet
const CLIP_RECORD_NORM_MISSING: u32 = 32u; // the norm pass has run, but no norm was supplied; the factor is 1
const CLIP_RECORD_SCALE_AT_FLOOR: u32 = 64u; // non-finite, and the dynamic loss scale is at its floor
const CLIP_RECORD_PART_MISSING: u32 = 128u;  // `first_non_finite` was not measured in this step; skip it
const CLIP_RECORD_NO_GRADIENT: u32 = 0xffffffffu;
const CLIP_RECORD_EMPTY_EXPONENT: i32 = -2147483647 - 1; // with a significand of 0: there are no elements

// Returns whether there is a norm.
fn clip_record_has_norm(record: ClipRecord) -> bool {
    let reasons = CLIP_RECORD_UNMEASURED | CLIP_RECORD_NORM_MISSING | CLIP_RECORD_PART_MISSING;
    return (record.flags & reasons) == 0u;
}

// Returns gradient * record.factor, even if that factor is below the normal range of f32, where a device may flush it to 0.
fn clip_record_scaled(record: ClipRecord, gradient: f32) -> f32 {
    let bits = bitcast<u32>(gradient);
    let field = i32((bits >> 23u) & 0xffu);
    if (record.factor_exponent >= -126 || field == 255) {
        return gradient * record.factor;
    }
    // By exponents and significands. A subnormal element times such a factor is 0.
    let significand = bitcast<f32>((bits & 0x7fffffu) | 0x3f800000u) * record.factor_significand;
    let product = bitcast<u32>(significand);
    // The exponent field of the product plus 64, since the product may be subnormal.
    let raised = i32((product >> 23u) & 0xffu) + field - 127 + record.factor_exponent + 64;
    let sign = (bits & 0x80000000u) ^ (product & 0x80000000u);
    if (field == 0 || raised <= 0) {
        return bitcast<f32>(sign);
    }
    return bitcast<f32>(sign | (u32(raised) << 23u) | (product & 0x7fffffu)) * bitcast<f32>(0x1f800000u); // 2^-64
}
