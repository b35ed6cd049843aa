// The clipping coefficient, the factor and the flags that follow from a norm and a limit.
//
// provides: set_clip_coef, set_factor, norm_of_record, record_without_norm, NO_NORM
// requires: segment, clip_record, float_bits, correctly_rounded, extended
// binds: norm_params

const POLICY_PROPAGATE: u32 = 0u;
const POLICY_SKIP: u32 = 1u;
const POLICY_ZERO: u32 = 2u;
const POLICY_POISON: u32 = 3u;

// Sets everything in the record that depends on the limit. The record already has the norm, without the loss scale, and
// `first_non_finite`.
fn set_clip_coef(record: ptr<function, ClipRecord>, limit: Extended) {
    let norm = norm_of_record(*record);
    let coef = clip_coef(norm, limit);
    (*record).total_norm = bitcast<f32>(nearest_f32(norm));
    (*record).clip_coef = bitcast<f32>(nearest_f32(coef));
    let is_one = coef.significand == ONE && coef.exponent == 0;
    (*record).flags = select(CLIP_RECORD_CLIPPED, 0u, is_one);
    set_factor(record, coef);
    if ((coef.significand & MAGNITUDE) < INFINITY && norm_params.inverse_scale != 1.0) {
        set_factor(record, extended_product(coef, extended(bitcast<u32>(norm_params.inverse_scale))));
    }
    // A norm beyond the range of f32 is still finite.
    let is_undefined = norm.significand >= INFINITY || (coef.significand & MAGNITUDE) > INFINITY;
    if (is_undefined || (*record).first_non_finite != CLIP_RECORD_NO_GRADIENT) {
        apply_policy(record);
    }
}

// The bits of a norm that does not exist: a NaN that no computation returns. A clip by supplied norm recognises them, also if
// they are copied from the record of another plan.
const NO_NORM: u32 = 0xffffffffu;

// Returns a record that changes no gradient.
fn record_without_norm(flags: u32, gradient: u32) -> ClipRecord {
    var record = ClipRecord();
    // WGSL has no constant NaN.
    record.total_norm = bitcast<f32>(NO_NORM | flags);
    record.clip_coef = 1.0;
    set_factor(&record, Extended(ONE, 0));
    record.norm_exponent = CLIP_RECORD_EMPTY_EXPONENT;
    record.first_non_finite = gradient;
    record.flags = flags;
    return record;
}

fn norm_of_record(record: ClipRecord) -> Extended {
    return Extended(bitcast<u32>(record.norm_significand), record.norm_exponent);
}

fn set_factor(record: ptr<function, ClipRecord>, factor: Extended) {
    (*record).factor = bitcast<f32>(nearest_f32(factor));
    (*record).factor_significand = bitcast<f32>(factor.significand);
    (*record).factor_exponent = factor.exponent;
}

fn apply_policy(record: ptr<function, ClipRecord>) {
    (*record).flags |= CLIP_RECORD_NON_FINITE;
    switch norm_params.policy {
        case POLICY_SKIP: {
            (*record).flags |= CLIP_RECORD_SKIP;
            set_factor(record, Extended(ONE, 0));
        }
        case POLICY_ZERO: {
            (*record).flags |= CLIP_RECORD_ZERO;
            set_factor(record, Extended(0u, 0));
        }
        case POLICY_POISON: {
            set_factor(record, Extended(NAN, 0));
        }
        default: {} // POLICY_PROPAGATE
    }
}

// Returns min(limit * (1 / (norm + epsilon)), 1) in PyTorch's order of operations. Each operation is rounded to the precision of
// f32, but not to its range: the norm may exceed it, and limit and coefficient may be subnormal.
fn clip_coef(norm: Extended, limit: Extended) -> Extended {
    let limit_magnitude = limit.significand & MAGNITUDE;
    if (limit_magnitude > INFINITY || norm.significand > INFINITY || (norm.significand == INFINITY && limit_magnitude == INFINITY)) {
        return Extended(NAN, 0); // includes ∞ · (1/∞)
    }
    if (norm.significand == INFINITY) {
        return Extended(limit.significand & SIGN, 0); // a zero
    }
    let sum = plus_epsilon(norm);
    // There is no limit, or the divisor is zero or would be flushed to zero.
    if (limit_magnitude == INFINITY || sum.significand == 0u || sum.exponent < -126) {
        return Extended(ONE, 0);
    }
    if (limit_magnitude == 0u) {
        return limit;
    }
    let inverse = reciprocal(bitcast<f32>(sum.significand));
    let coef = normalized(bitcast<f32>(limit_magnitude) * inverse, limit.exponent - sum.exponent);
    if ((limit.significand & SIGN) != 0u) {
        return Extended(coef.significand | SIGN, coef.exponent);
    }
    if (coef.exponent >= 0) {
        return Extended(ONE, 0);
    }
    return coef;
}

fn plus_epsilon(norm: Extended) -> Extended {
    let epsilon = extended(bitcast<u32>(norm_params.epsilon));
    if (norm.significand == 0u) {
        return epsilon;
    }
    if (epsilon.significand == 0u) {
        return norm;
    }
    let exponent = max(norm.exponent, epsilon.exponent);
    return normalized(relative_to(norm, exponent) + relative_to(epsilon, exponent), exponent);
}

// Returns number * 2^-exponent for a number in (0, 2 * 2^exponent). A result below 2^-126 becomes some number of [2^-126, 2^-125).
fn relative_to(number: Extended, exponent: i32) -> f32 {
    return bitcast<f32>(number.significand) * power_of_two(max(number.exponent - exponent, -126));
}
