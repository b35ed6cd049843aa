// Segments: the units that have a norm and a record of their own. A segment is a group, a gradient or a row.
//
// provides: Segment, NormParams, NO_PARTIAL, without_loss_scale, magnitude_without_loss_scale
// requires: float_bits, extended
// binds: norm_params

struct Segment {
    first: u32,    // the index of its first partial
    count: u32,    // the number of its partials
    max_norm: f32, // the limit; for AGC, the allowed ratio
}

// The parameters of a clip by norm. The first six are the `LossScale` of loss_scale.wgsl, so that callers can bind it.
struct NormParams {
    scale: f32,
    growth: f32,
    backoff: f32,
    scale_floor: f32,
    interval: u32,              // 0 for a fixed loss scale
    good_steps: u32,
    inverse_scale: f32,         // the inverse of the loss scale; positive and finite
    epsilon: f32,
    policy: u32,                // a POLICY_*
    floor: f32,                 // AGC: the smallest norm of a parameter
    rate: f32,                  // z-clip: the weight of a new norm in the mean
    threshold: f32,             // z-clip: the largest deviation from the mean, in standard deviations
    warm_up: u32,               // z-clip: the number of steps without a limit
    skip_above: f32,            // the norm above which a step is skipped; infinity for none
    max_consecutive_skips: u32, // the number of such steps in a row after which one is clipped instead
    percentile_steps: u32,      // auto-clip: the percentile in whole steps of 2^-15 percent
    percentile_rest: f32,       // auto-clip: the rest of the percentile, in such steps; below 1
}

const NO_PARTIAL: u32 = 0xffffffffu;

// Undoes the loss scale in a norm, by exponents and significands, so that nothing overflows in between.
fn without_loss_scale(value: Extended) -> Extended {
    if (value.significand >= INFINITY || norm_params.inverse_scale == 1.0) {
        return value;
    }
    return extended_product(value, extended(bitcast<u32>(norm_params.inverse_scale)));
}

// Undoes the loss scale in the bits of a magnitude, and makes a NaN canonical.
fn magnitude_without_loss_scale(magnitude: u32) -> u32 {
    if (magnitude > INFINITY) {
        return NAN;
    }
    return nearest_f32(without_loss_scale(extended(magnitude)));
}
