// Segments: gradients with a norm and a record of their own, all of a group or each by itself.
//
// Interface: `Segment`, `Measure`, `segments`, `owners`, `measure`, NO_PARTIAL, `without_loss_scale`, `unscaled_magnitude`.
// Needs found.wgsl, float_bits.wgsl.

struct Segment {
    first: u32,    // the first of its partials
    count: u32,    // how many it has
    max_norm: f32, // its limit
}

// How a plan measures, and what it concludes.
struct Measure {
    epsilon: f32,
    policy: u32,        // a POLICY_*
    inverse_scale: f32, // what undoes the loss scale; positive and finite
    floor: f32,         // relative.wgsl: the least norm of a parameter
    rate: f32,          // adapt.wgsl: how much of a new norm enters the mean
    threshold: f32,     // adapt.wgsl: by how many deviations a norm may exceed the mean
    warm_up: u32,       // adapt.wgsl: how many steps do not limit
}

@group(0) @binding(1) var<uniform> measure: Measure;
@group(0) @binding(2) var<storage, read> segments: array<Segment>;
@group(0) @binding(3) var<storage, read> owners: array<u32>; // of each partial: the gradient that it is of

const NO_PARTIAL: u32 = 0xffffffffu;

// The same norm without the loss scale, its value in [1, 2).
fn without_loss_scale(found: Found) -> Found {
    let own = split(bitcast<u32>(found.value));
    let exponent = own.exponent + found.exponent;
    if (found.is_count || measure.inverse_scale == 1.0) {
        return regular(own.significand, exponent);
    }
    // By exponents and significands, so that nothing overflows in between.
    let inverse = split(bitcast<u32>(measure.inverse_scale));
    let product = own.significand * inverse.significand;
    let carry = select(0, 1, product >= 2.0);
    return regular(product * select(1.0, 0.5, carry == 1), exponent + inverse.exponent + carry);
}

// The largest magnitude without the loss scale.
fn unscaled_magnitude(largest: u32) -> u32 {
    if (largest > INFINITY) {
        return NAN;
    }
    if (largest == 0u || largest == INFINITY || measure.inverse_scale == 1.0) {
        return largest;
    }
    let own = split(largest);
    let unscaled = without_loss_scale(regular(own.significand, own.exponent));
    return scaled_up(unscaled.value, unscaled.exponent);
}
