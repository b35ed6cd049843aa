// The conclusion: the coefficient, the factor and the flags that follow from a norm and a limit.
//
// Interface: `conclude`. Needs segment.wgsl, record.wgsl, float_bits.wgsl, exact.wgsl.

const POLICY_PROPAGATE: u32 = 0u;
const POLICY_SKIP: u32 = 1u;
const POLICY_ZERO: u32 = 2u;
const POLICY_POISON: u32 = 3u;

// What follows from the norm in the record, which has no loss scale in it, and from whether there is a gradient that is not
// finite.
fn conclude(record: ptr<function, ClipRecord>, limit: Wide) {
    let norm = wide_norm(*record);
    let coef = coefficient(norm, limit);
    (*record).total_norm = bitcast<f32>(nearest_f32(norm));
    (*record).clip_coef = bitcast<f32>(nearest_f32(coef));
    let is_one = coef.significand == ONE && coef.exponent == 0;
    (*record).flags = select(CLIP_RECORD_CLIPPED, 0u, is_one);
    set_factor(record, coef);
    if ((coef.significand & MAGNITUDE) < INFINITY && measure.inverse_scale != 1.0) {
        set_factor(record, wide_product(coef, wide(bitcast<u32>(measure.inverse_scale))));
    }
    // A norm that f32 does not hold is a number all the same.
    let no_number = norm.significand >= INFINITY || (coef.significand & MAGNITUDE) > INFINITY;
    if (no_number || (*record).first_non_finite != NO_GRADIENT) {
        obey_policy(record);
    }
}

fn wide_norm(record: ClipRecord) -> Wide {
    return Wide(bitcast<u32>(record.norm_significand), record.norm_exponent);
}

fn set_factor(record: ptr<function, ClipRecord>, factor: Wide) {
    (*record).factor = bitcast<f32>(nearest_f32(factor));
    (*record).factor_significand = bitcast<f32>(factor.significand);
    (*record).factor_exponent = factor.exponent;
}

fn obey_policy(record: ptr<function, ClipRecord>) {
    (*record).flags |= CLIP_RECORD_NON_FINITE;
    switch measure.policy {
        case POLICY_SKIP: {
            (*record).flags |= CLIP_RECORD_SKIP;
            set_factor(record, Wide(ONE, 0));
        }
        case POLICY_ZERO: {
            (*record).flags |= CLIP_RECORD_ZERO;
            set_factor(record, Wide(0u, 0));
        }
        case POLICY_POISON: {
            set_factor(record, Wide(NAN, 0));
        }
        default: {}
    }
}

// min(limit * (1 / (norm + epsilon)), 1), in PyTorch's order of operations, each rounded to the precision of f32 but none of
// them to its range: the norm may exceed it, and limit and coefficient may be subnormal.
fn coefficient(norm: Wide, limit: Wide) -> Wide {
    let most = limit.significand & MAGNITUDE;
    if (most > INFINITY || norm.significand > INFINITY || (norm.significand == INFINITY && most == INFINITY)) {
        return Wide(NAN, 0); // ∞ · (1/∞) among them
    }
    if (norm.significand == INFINITY) {
        return Wide(limit.significand & SIGN, 0); // a zero
    }
    let sum = plus_epsilon(norm);
    // There is no limit, or nothing to divide by.
    if (most == INFINITY || sum.significand == 0u || sum.exponent < -126) {
        return Wide(ONE, 0);
    }
    if (most == 0u) {
        return limit;
    }
    let inverse = reciprocal(bitcast<f32>(sum.significand));
    let coef = normalized(bitcast<f32>(most) * inverse, limit.exponent - sum.exponent);
    if ((limit.significand & SIGN) != 0u) {
        return Wide(coef.significand | SIGN, coef.exponent);
    }
    if (coef.exponent >= 0) {
        return Wide(ONE, 0);
    }
    return coef;
}

fn plus_epsilon(norm: Wide) -> Wide {
    let epsilon = wide(bitcast<u32>(measure.epsilon));
    if (norm.significand == 0u) {
        return epsilon;
    }
    if (epsilon.significand == 0u) {
        return norm;
    }
    let exponent = max(norm.exponent, epsilon.exponent);
    return normalized(lowered(norm, exponent) + lowered(epsilon, exponent), exponent);
}

// number * 2^-exponent, for a number above zero that is less than 2 * 2^exponent; some tiny number where that is tinier.
fn lowered(number: Wide, exponent: i32) -> f32 {
    return bitcast<f32>(number.significand) * power_of_two(max(number.exponent - exponent, -126));
}
