// The conclusion: the coefficient, the factor and the flags that follow from a norm and a limit.
//
// Interface: `conclude`. Needs segment.wgsl, record.wgsl, float_bits.wgsl, exact.wgsl.

const POLICY_PROPAGATE: u32 = 0u;
const POLICY_SKIP: u32 = 1u;
const POLICY_ZERO: u32 = 2u;
const POLICY_POISON: u32 = 3u;

// What follows from a norm without the loss scale, and from whether there is a gradient that is not finite.
fn conclude(record: ptr<function, ClipRecord>, norm: u32, max_norm: f32) {
    let coef = coefficient(norm, max_norm);
    (*record).total_norm = bitcast<f32>(norm);
    (*record).clip_coef = bitcast<f32>(coef);
    (*record).flags = select(CLIP_RECORD_CLIPPED, 0u, coef == ONE);
    (*record).factor = bitcast<f32>(coef);
    if ((coef & MAGNITUDE) < INFINITY && measure.inverse_scale != 1.0) {
        (*record).factor = bitcast<f32>(product(coef, bitcast<u32>(measure.inverse_scale)));
    }
    let no_number = norm >= INFINITY || (coef & MAGNITUDE) > INFINITY;
    if (no_number || (*record).first_non_finite != NO_GRADIENT) {
        obey_policy(record);
    }
}

fn obey_policy(record: ptr<function, ClipRecord>) {
    (*record).flags |= CLIP_RECORD_NON_FINITE;
    switch measure.policy {
        case POLICY_SKIP: {
            (*record).flags |= CLIP_RECORD_SKIP;
            (*record).factor = 1.0;
        }
        case POLICY_ZERO: {
            (*record).flags |= CLIP_RECORD_ZERO;
            (*record).factor = 0.0;
        }
        case POLICY_POISON: {
            var nan = NAN; // not a constant, which may not be NaN
            (*record).factor = bitcast<f32>(nan);
        }
        default: {}
    }
}

// min(max_norm * (1 / (norm + epsilon)), 1), as PyTorch computes it.
fn coefficient(norm: u32, max_norm: f32) -> u32 {
    let limit = bitcast<u32>(max_norm);
    let no_limit = (limit & MAGNITUDE) > INFINITY;
    if (no_limit || norm > INFINITY || (norm == INFINITY && (limit & MAGNITUDE) == INFINITY)) {
        return NAN; // ∞ · (1/∞) among them
    }
    if (norm == INFINITY) {
        return limit & SIGN; // a zero
    }
    let sum = bitcast<u32>(bitcast<f32>(norm) + measure.epsilon);
    // Here the product below would be at least 1, and might overflow; or there is nothing to divide by.
    let unlimited = (limit & MAGNITUDE) == INFINITY || 0.5 * max_norm > bitcast<f32>(sum);
    if (unlimited || sum < SMALLEST_NORMAL) {
        return ONE;
    }
    if ((limit & MAGNITUDE) == 0u || sum == INFINITY) {
        return limit & SIGN;
    }
    // By exponents and significands: a limit may be subnormal, and so may the reciprocal of a sum above 2^126.
    let a = split(limit & MAGNITUDE);
    let b = split(sum);
    let coef = scaled_up(a.significand * reciprocal(b.significand), a.exponent - b.exponent);
    return select(coef | SIGN, min(coef, ONE), (limit & SIGN) == 0u);
}
