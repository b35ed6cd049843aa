// Segments: gradients with a norm and a record of their own, all of a group or each by itself.
//
// Interface: `Segment`, `Measure`, `segments`, `owners`, `measure`, `record_norm`,
// `conclude`, NO_PARTIAL. Needs found.wgsl,
// float_bits.wgsl, record.wgsl.

struct Segment {
    first: u32,    // the first of its partials
    count: u32,    // how many it has
    max_norm: f32, // its limit
}

// How a plan measures.
struct Measure {
    epsilon: f32,
    policy: u32,        // a POLICY_*
    inverse_scale: f32, // what undoes the loss scale; positive and finite
}

const POLICY_PROPAGATE: u32 = 0u;
const POLICY_SKIP: u32 = 1u;
const POLICY_ZERO: u32 = 2u;
const POLICY_POISON: u32 = 3u;

@group(0) @binding(1) var<uniform> measure: Measure;
@group(0) @binding(2) var<storage, read> segments: array<Segment>;
@group(0) @binding(3) var<storage, read> owners: array<u32>; // of each partial: the gradient that it is of
@group(0) @binding(4) var<storage, read_write> records: array<ClipRecord>;

const NO_PARTIAL: u32 = 0xffffffffu;

// Writes the record of a segment with this norm and largest magnitude, whose first partial that is not finite is this.
fn record_norm(index: u32, found: Found, largest: u32, first_non_finite: u32) {
    var record: ClipRecord;
    var norm = found.bits;
    record.norm_significand = bitcast<f32>(found.bits);
    if (!found.special) {
        let unscaled = without_loss_scale(found);
        norm = scaled_up(unscaled.value, unscaled.exponent);
        record.norm_significand = unscaled.value;
        record.norm_exponent = unscaled.exponent;
    }
    record.max_magnitude = bitcast<f32>(unscaled_magnitude(largest));
    record.first_non_finite = NO_GRADIENT;
    if (first_non_finite != NO_PARTIAL) {
        record.first_non_finite = owners[first_non_finite];
    }
    conclude(&record, norm, segments[index].max_norm);
    records[index] = record;
}

// What follows from a norm without the loss scale, and from whether there is a gradient that is not finite.
fn conclude(record: ptr<function, ClipRecord>, norm: u32, max_norm: f32) {
    let coef = coefficient(norm, max_norm);
    (*record).total_norm = bitcast<f32>(norm);
    (*record).clip_coef = bitcast<f32>(coef);
    (*record).flags = select(CLIP_RECORD_CLIPPED, 0u, coef == ONE);
    (*record).factor = bitcast<f32>(coef);
    if (coef <= INFINITY) {
        (*record).factor *= measure.inverse_scale;
    }
    if (norm >= INFINITY || (*record).first_non_finite != NO_GRADIENT) {
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

// The same norm without the loss scale, its value in [1, 2).
fn without_loss_scale(found: Found) -> Found {
    let inverse = bitcast<u32>(measure.inverse_scale);
    let inverse_exponent = exponent_of(inverse);
    // By exponents and significands, so that nothing overflows in between.
    let own_exponent = exponent_of(bitcast<u32>(found.value));
    let own = scaled_down(bitcast<u32>(found.value), own_exponent);
    let product = own * scaled_down(inverse, inverse_exponent);
    let carry = select(0, 1, product >= 2.0);
    return regular(
        product * select(1.0, 0.5, carry == 1),
        own_exponent + found.exponent + inverse_exponent + carry,
    );
}

// The largest magnitude without the loss scale.
fn unscaled_magnitude(largest: u32) -> u32 {
    if (largest > INFINITY) {
        return NAN;
    }
    if (largest == 0u || largest == INFINITY) {
        return largest;
    }
    let exponent = exponent_of(largest);
    let unscaled = without_loss_scale(regular(scaled_down(largest, exponent), exponent));
    return scaled_up(unscaled.value, unscaled.exponent);
}

// min(max_norm * (1 / (norm + epsilon)), 1), as PyTorch computes it.
fn coefficient(norm: u32, max_norm: f32) -> u32 {
    let limit = bitcast<u32>(max_norm);
    if (norm > INFINITY || (norm == INFINITY && (limit & MAGNITUDE) == INFINITY)) {
        return NAN; // ∞ · (1/∞) among them
    }
    if (norm == INFINITY) {
        return limit & SIGN; // a zero
    }
    let sum = bitcast<f32>(norm) + measure.epsilon;
    // Here the product below would be at least 1, and might overflow; or there is nothing to divide by.
    let unlimited = (limit & MAGNITUDE) == INFINITY || 0.5 * max_norm > sum;
    if (unlimited || bitcast<u32>(sum) < SMALLEST_NORMAL) {
        return ONE;
    }
    // The reciprocal of a sum above 2^126 is subnormal, and lost where those are flushed.
    let scale = select(1.0, power_of_two(-64), sum > power_of_two(100));
    let coef = bitcast<u32>((max_norm * (1.0 / (sum * scale))) * scale);
    return select(coef, ONE, (coef & SIGN) == 0u && coef > ONE);
}
