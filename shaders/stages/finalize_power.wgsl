// Norm pass for general p, second stage: reduces the partials of each segment to its norm, and writes its output.
//
// One workgroup for each segment.
//
// requires: workgroup, banks, segment, partials, norms, reduce, outputs, float_bits, extended, counts
// binds: segments, gradient_of_partial
// constants: WORKGROUP_SIZE, POWER

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup_index(workgroup, grid);
    if (index >= arrayLength(&segments)) {
        return;
    }
    let segment = segments[index];
    var partial = NO_ELEMENTS;
    for (var at = lane; at < segment.count; at += WORKGROUP_SIZE) {
        partial = combine(partial, partial_at(segment.first + at));
    }
    let all = reduce(lane, partial);
    var sum = 0.0;
    // The first missing partial, or the first that is not finite.
    var first = NO_PARTIAL;
    let least = select(INFINITY, MISSING, all.largest == MISSING);
    for (var at = lane; at < segment.count; at += WORKGROUP_SIZE) {
        let candidate = segment.first + at;
        sum += sum_of_partial(candidate, segment, reference_of(all));
        if (partial_at(candidate).largest >= least) {
            first = min(first, candidate);
        }
    }
    // The field `smallest` carries the index, since `combine` takes its minimum.
    let total = reduce(lane, Partial(sum, first, 0u, Counts()));
    if (lane == 0u && all.largest == MISSING) {
        write_missing(index, total.smallest);
    } else if (lane == 0u) {
        let norm = norm_of_all(total.sum, all, segment.count);
        let magnitude = magnitude_without_loss_scale(all.largest);
        write_output(index, segment, norm, magnitude, total.smallest, all.counts);
    }
    reset_partials(segment, lane);
}

// Returns the sum of a partial's terms, relative to the reference of the segment.
fn sum_of_partial(index: u32, segment: Segment, reference: u32) -> f32 {
    let partial = partial_at(index);
    if (POWER != 0.0) {
        return partial.sum * term(reference_of(partial), reference);
    }
    // A gradient counts once, with the first of its tiles that is not zero.
    for (
        var before = index;
        before > segment.first && gradient_of_partial[before - 1u] == gradient_of_partial[index];
        before -= 1u
    ) {
        if (partial_at(before - 1u).sum != 0.0) {
            return 0.0;
        }
    }
    return partial.sum;
}

// Returns the norm of a segment without the loss scale, which the 0-norm does not have.
fn norm_of_all(sum: f32, all: Partial, count: u32) -> Extended {
    if (POWER == 0.0) {
        return extended(bitcast<u32>(sum));
    }
    if (all.largest > INFINITY) {
        return Extended(NAN, 0);
    }
    let reference = reference_of(all);
    if (count == 0u || reference == 0u) {
        return Extended(0u, 0);
    }
    if (reference >= INFINITY) {
        return Extended(INFINITY, 0);
    }
    let exponent = exponent_of(reference);
    // Beyond these bounds, the norm is far outside the range of f32.
    let root = clamp(log2(sum) / POWER, -4096.0, 4096.0);
    let significand = scale_down(reference, exponent) * exp2(root - floor(root));
    return without_loss_scale(normalized(significand, exponent + i32(floor(root))));
}
