// The outcome of a clip by norm. 40 bytes; the Rust side is `ClipRecord`.
struct ClipRecord {
    total_norm: f32,        // offset  0: the norm before clipping, without the loss scale
    clip_coef: f32,         // offset  4: what clips to the limit; exactly 1 within it
    factor: f32,            // offset  8: what every element is multiplied by: clip_coef, the inverse loss scale, the policy
    max_magnitude: f32,     // offset 12: the largest |g|, without the loss scale; NaN if any element is NaN
    flags: u32,             // offset 16: the CLIP_RECORD_* bits below
    first_non_finite: u32,  // offset 20: the index of the first gradient that holds an infinity or a NaN, or NO_GRADIENT
    norm_significand: f32,  // offset 24: the norm again, as significand * 2^exponent, where an f32 would overflow
    norm_exponent: i32,     // offset 28
    factor_significand: f32, // offset 32: the factor again, as significand * 2^exponent, where an f32 would be subnormal or 0
    factor_exponent: i32,   // offset 36
}

const CLIP_RECORD_CLIPPED: u32 = 1u;    // the coefficient is not 1
const CLIP_RECORD_NON_FINITE: u32 = 2u; // an element is infinite or NaN; or a supplied norm or a limit is
const CLIP_RECORD_SKIP: u32 = 4u;       // the policy for that is to leave this step out
const CLIP_RECORD_ZERO: u32 = 8u;       // the policy for that is to make everything 0
const CLIP_RECORD_UNMEASURED: u32 = 16u; // no norm pass has run yet
const CLIP_RECORD_NORM_MISSING: u32 = 32u; // it has, without the norm that was to be supplied; the factor is 1
const NO_GRADIENT: u32 = 0xffffffffu;
const EMPTY_EXPONENT: i32 = -2147483647 - 1; // beside a significand of 0: there is no element at all
