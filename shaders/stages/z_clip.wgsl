// Norm pass, after finalize, for z-clip: computes the coefficients again, with limits that follow the norms of past steps, and
// updates the histories. A. Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training" (2025); z_clip.rs in Rust.
//
//   z      = (norm - mean) / deviation
//   limit  = mean + threshold^2 / z * deviation            if z exceeds the threshold
//   norm'  = min(norm, limit)
//   mean'  = mean + rate * (norm' - mean)
//   deviation'^2 = (1 - rate) * (deviation^2 + rate * (1 - rate) * (norm' - mean)^2)
//
// The steps of the warm-up have no limit; there, mean and deviation are those of all norms so far.
//
// One invocation for each segment.
//
// requires: workgroup, segment, clip_coef, clip_record, float_bits, extended
// binds: segments, norm_params, histories, records
// constants: WORKGROUP_SIZE

struct NormHistory {
    steps: u32,     // the number of norms so far, up to the length of the warm-up
    mean: f32,
    deviation: f32,
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = invocation_index(workgroup, grid, lane);
    if (index >= arrayLength(&segments)) {
        return;
    }
    var record = records[index];
    let norm = norm_of_record(record);
    // Steps with non-finite gradients or without a norm do not enter the history.
    if (!clip_record_has_norm(record) || norm.significand >= INFINITY || record.first_non_finite != CLIP_RECORD_NO_GRADIENT) {
        return;
    }
    var history = histories[index];
    if (history.mean == 0.0 && history.steps >= norm_params.warm_up) {
        // A history of zeros predicts nothing, and a limit of 0 would last forever: the warm-up starts again.
        history.steps = 0u;
    }
    var counted_norm = record.total_norm;
    let is_beyond_f32 = nearest_f32(norm) == INFINITY;
    let is_limited = is_beyond_f32 || is_spike(history, counted_norm);
    if (is_beyond_f32) {
        // The history cannot hold the norm, but it can hold the limit.
        counted_norm = limit_beyond_f32(history, norm);
        if (history.steps < norm_params.warm_up || bitcast<u32>(counted_norm) >= INFINITY) {
            histories[index] = history;
            return;
        }
    } else if (is_limited) {
        counted_norm = limit_for(history, counted_norm);
    }
    if (is_limited) {
        set_clip_coef(&record, extended(bitcast<u32>(min(counted_norm, segments[index].max_norm))));
        records[index] = record;
    }
    histories[index] = add_norm(history, counted_norm);
}

fn is_spike(history: NormHistory, norm: f32) -> bool {
    return history.steps >= norm_params.warm_up && norm - history.mean > norm_params.threshold * history.deviation;
}

// Returns a limit that is below the norm and not below the mean.
fn limit_for(history: NormHistory, norm: f32) -> f32 {
    let max_deviation = norm_params.threshold * history.deviation;
    return history.mean + max_deviation * (max_deviation / (norm - history.mean));
}

// Returns the limit for a norm beyond f32, with all numbers divided by the norm's power of two.
fn limit_beyond_f32(history: NormHistory, norm: Extended) -> f32 {
    let max_deviation = norm_params.threshold * history.deviation;
    let mean = scale_down(bitcast<u32>(history.mean), norm.exponent);
    let ratio = scale_down(bitcast<u32>(max_deviation), norm.exponent) / (bitcast<f32>(norm.significand) - mean);
    return history.mean + max_deviation * ratio;
}

fn add_norm(history: NormHistory, norm: f32) -> NormHistory {
    let distance = norm - history.mean;
    if (history.steps < norm_params.warm_up) {
        let steps = history.steps + 1u;
        let rate = 1.0 / f32(steps);
        let spread = sqrt(1.0 - rate) * hypotenuse(history.deviation, sqrt(rate) * distance);
        return NormHistory(steps, mean_after(history.mean, norm, rate), spread);
    }
    let rest = 1.0 - norm_params.rate;
    let spread = sqrt(rest) * hypotenuse(history.deviation, sqrt(norm_params.rate * rest) * distance);
    return NormHistory(history.steps, mean_after(history.mean, norm, norm_params.rate), spread);
}

// Interpolates from the nearer end: near the norm, the rounding error of the mean could exceed the norm.
fn mean_after(mean: f32, norm: f32, rate: f32) -> f32 {
    let distance = norm - mean;
    return select(mean + rate * distance, norm - (1.0 - rate) * distance, rate > 0.5);
}

// Returns sqrt(a^2 + b^2); the squares may leave the range of f32.
fn hypotenuse(a: f32, b: f32) -> f32 {
    let large = max(abs(a), abs(b));
    if (large == 0.0) {
        return 0.0;
    }
    let ratio = min(abs(a), abs(b)) / large;
    return large * sqrt(1.0 + ratio * ratio);
}
