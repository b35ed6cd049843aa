// Norm, after stage 2, for limits that follow the norms of past steps: the records again, concluded with those limits,
// and the histories with this step in them.
//
//   z      = (norm - mean) / deviation
//   limit  = mean + threshold^2 / z * deviation            where z exceeds the threshold
//   norm'  = min(norm, limit)
//   mean'  = mean + rate * (norm' - mean)
//   deviation'^2 = (1 - rate) * (deviation^2 + rate * (1 - rate) * (norm' - mean)^2)
//
// The first steps do not limit; there mean and deviation are those of all norms so far. The Rust side is z_clip.rs.
//
// An invocation a segment (per_invocation.wgsl). Needs segment.wgsl, conclude.wgsl, record.wgsl, float_bits.wgsl, exact.wgsl.

struct NormHistory {
    steps: u32,     // how many norms it has seen, as far as the end of the warm-up
    mean: f32,
    deviation: f32,
}

@group(0) @binding(0) var<storage, read_write> histories: array<NormHistory>;
@group(0) @binding(4) var<storage, read_write> records: array<ClipRecord>;

fn items() -> u32 {
    return arrayLength(&segments);
}

fn each(index: u32) {
    var record = records[index];
    let norm = wide_norm(record);
    // What is not finite is no part of any history, nor is a norm that was not supplied.
    let is_missing = (record.flags & CLIP_RECORD_NORM_MISSING) != 0u;
    if (is_missing || norm.significand >= INFINITY || record.first_non_finite != NO_GRADIENT) {
        return;
    }
    var history = histories[index];
    if (history.mean == 0.0 && history.steps >= measure.warm_up) {
        // Norms of 0 say nothing of the next one, and a limit of 0 would last for ever.
        history.steps = 0u;
    }
    var counted = record.total_norm;
    let is_beyond = nearest_f32(norm) == INFINITY;
    let is_spike = is_beyond || exceeds(history, counted);
    if (is_beyond) {
        // A history cannot hold the norm, only a limit of it.
        counted = limit_beyond(history, norm);
        if (history.steps < measure.warm_up || bitcast<u32>(counted) >= INFINITY) {
            histories[index] = history;
            return;
        }
    } else if (is_spike) {
        counted = limit_of(history, counted);
    }
    if (is_spike) {
        conclude(&record, wide(bitcast<u32>(min(counted, segments[index].max_norm))));
        records[index] = record;
    }
    histories[index] = with_norm(history, counted);
}

fn exceeds(history: NormHistory, norm: f32) -> bool {
    return history.steps >= measure.warm_up && norm - history.mean > measure.threshold * history.deviation;
}

// Less than the norm, and not less than the mean.
fn limit_of(history: NormHistory, norm: f32) -> f32 {
    let most = measure.threshold * history.deviation;
    return history.mean + most * (most / (norm - history.mean));
}

// The same for a norm beyond f32, all of it divided by the norm's power of two.
fn limit_beyond(history: NormHistory, norm: Wide) -> f32 {
    let most = measure.threshold * history.deviation;
    let mean = scaled_down(bitcast<u32>(history.mean), norm.exponent);
    let ratio = scaled_down(bitcast<u32>(most), norm.exponent) / (bitcast<f32>(norm.significand) - mean);
    return history.mean + most * ratio;
}

fn with_norm(history: NormHistory, norm: f32) -> NormHistory {
    let distance = norm - history.mean;
    if (history.steps < measure.warm_up) {
        let steps = history.steps + 1u;
        let rate = 1.0 / f32(steps);
        let spread = sqrt(1.0 - rate) * hypotenuse(history.deviation, sqrt(rate) * distance);
        return NormHistory(steps, mean_with(history.mean, norm, rate), spread);
    }
    let rest = 1.0 - measure.rate;
    let spread = sqrt(rest) * hypotenuse(history.deviation, sqrt(measure.rate * rest) * distance);
    return NormHistory(history.steps, mean_with(history.mean, norm, measure.rate), spread);
}

// From the nearer end: what is left of a mean may be little, and its rounding more than the norm.
fn mean_with(mean: f32, norm: f32, rate: f32) -> f32 {
    let distance = norm - mean;
    return select(mean + rate * distance, norm - (1.0 - rate) * distance, rate > 0.5);
}

// sqrt(a^2 + b^2), where the squares may leave f32.
fn hypotenuse(a: f32, b: f32) -> f32 {
    let large = max(abs(a), abs(b));
    if (large == 0.0) {
        return 0.0;
    }
    let ratio = min(abs(a), abs(b)) / large;
    return large * sqrt(1.0 + ratio * ratio);
}
