// Norm, stage 2: the partials of all tiles joined to the norm, and the coefficient that clips to the limit.
//
//   total_norm = sqrt(Σ partials)
//   clip_coef  = min(max_norm * (1 / (total_norm + epsilon)), 1)    as PyTorch computes it
//
// One workgroup.

struct Limit {
    max_norm: f32,
    epsilon: f32,
}

@group(0) @binding(0) var<storage, read> partials: array<Partial>;
@group(0) @binding(1) var<uniform> limit: Limit;
@group(0) @binding(2) var<storage, read_write> record: ClipRecord;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(local_invocation_index) lane: u32) {
    let total = reduce(lane, plain_total(lane));
    let largest = total.largest & MAGNITUDE;
    let rescue = (total.largest & RESCUED) != 0u;
    let exponent = select(0, exponent_of(largest), rescue);

    var sum = total.sum;
    // Uniform: `reduce` gives every invocation the same.
    if (rescue) {
        sum = reduce(lane, Partial(rescued_total(lane, exponent), 0u)).sum;
    }
    if (lane == 0u) {
        write_record(norm_bits(sum, exponent, largest), largest);
    }
}

// A sum of very many terms in chains of 16: sums of 16, sums of 16 such sums, and so on.
struct Cascade {
    ones: f32,
    sixteens: f32,
    rest: f32,
}

// Adds the term of number `index`.
fn add(cascade: ptr<function, Cascade>, index: u32, term: f32) {
    (*cascade).ones += term;
    if ((index & 15u) == 15u) {
        (*cascade).sixteens += (*cascade).ones;
        (*cascade).ones = 0.0;
    }
    if ((index & 255u) == 255u) {
        (*cascade).rest += (*cascade).sixteens;
        (*cascade).sixteens = 0.0;
    }
}

fn total_of(cascade: Cascade) -> f32 {
    return cascade.rest + (cascade.sixteens + cascade.ones);
}

// The partials that one invocation joins, but for the sums of the rescued ones: their scale is not known yet. Four
// at a time, their loads in flight together: this stage is a single workgroup, and does nothing but wait for them.
fn plain_total(lane: u32) -> Partial {
    var cascade = Cascade();
    var largest = 0u;
    var index = 0u;
    for (var at = lane; at < arrayLength(&partials); at += 4u * WORKGROUP_SIZE) {
        let a = partial_at(at);
        let b = partial_at(at + WORKGROUP_SIZE);
        let c = partial_at(at + 2u * WORKGROUP_SIZE);
        let d = partial_at(at + 3u * WORKGROUP_SIZE);
        let sum = (plain_sum(a) + plain_sum(b)) + (plain_sum(c) + plain_sum(d));
        let four = combine(combine(a, b), combine(c, d));
        largest = combine(Partial(0.0, largest), four).largest;
        add(&cascade, index, sum);
        index += 1u;
    }
    return Partial(total_of(cascade), largest);
}

// All the partials of one invocation times 2^-2*exponent, where 2^exponent is about the largest magnitude of all.
fn rescued_total(lane: u32, exponent: i32) -> f32 {
    var cascade = Cascade();
    var index = 0u;
    for (var at = lane; at < arrayLength(&partials); at += WORKGROUP_SIZE) {
        let partial = partials[at];
        let own = select(0, exponent_of(partial.largest & MAGNITUDE), (partial.largest & RESCUED) != 0u);
        let scale = power_of_two(clamp(own - exponent, -126, 127));
        add(&cascade, index, partial.sum * scale * scale);
        index += 1u;
    }
    return total_of(cascade);
}

fn partial_at(index: u32) -> Partial {
    if (index < arrayLength(&partials)) {
        return partials[index];
    }
    return Partial();
}

fn plain_sum(partial: Partial) -> f32 {
    return select(partial.sum, 0.0, (partial.largest & RESCUED) != 0u);
}

fn norm_bits(sum: f32, exponent: i32, largest: u32) -> u32 {
    if (largest > INFINITY) {
        return NAN;
    }
    if (largest == 0u || largest == INFINITY) {
        return largest;
    }
    return scaled_up(sqrt(sum), exponent);
}

fn write_record(norm: u32, largest: u32) {
    let coef = coefficient_bits(norm);
    let clipped = select(CLIP_RECORD_CLIPPED, 0u, coef == ONE);
    let non_finite = select(0u, CLIP_RECORD_NON_FINITE, norm >= INFINITY);
    record.total_norm = bitcast<f32>(norm);
    record.clip_coef = bitcast<f32>(coef);
    record.max_magnitude = bitcast<f32>(select(largest, NAN, largest > INFINITY));
    record.flags = clipped | non_finite;
}

fn coefficient_bits(norm: u32) -> u32 {
    let max_norm = bitcast<u32>(limit.max_norm);
    if (norm > INFINITY || (norm == INFINITY && (max_norm & MAGNITUDE) == INFINITY)) {
        return NAN; // ∞ · (1/∞) among them
    }
    if (norm == INFINITY) {
        return max_norm & SIGN; // a zero
    }
    let sum = bitcast<f32>(norm) + limit.epsilon;
    // Here the product below would be at least 1, and might overflow.
    if ((max_norm & MAGNITUDE) == INFINITY || 0.5 * limit.max_norm > sum) {
        return ONE;
    }
    // The reciprocal of a sum above 2^126 is subnormal, and lost where those are flushed.
    let scale = select(1.0, power_of_two(-64), sum > power_of_two(100));
    let coef = bitcast<u32>((limit.max_norm * (1.0 / (sum * scale))) * scale);
    return select(coef, ONE, (coef & SIGN) == 0u && coef > ONE);
}
