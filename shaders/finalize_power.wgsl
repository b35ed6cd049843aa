// Norm, stage 2, for a plain p: the partials of each segment joined to its norm, and what is to be left of that.
//
// One workgroup a segment. Needs norm_power.wgsl, `leave` of a record or of statistics.

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup.y * grid.x + workgroup.x;
    if (index >= arrayLength(&segments)) {
        return;
    }
    let segment = segments[index];
    var own = NOTHING;
    for (var at = lane; at < segment.count; at += WORKGROUP_SIZE) {
        own = join(own, partial_at(segment.first + at));
    }
    let all = reduce(lane, own);
    var sum = 0.0;
    var first_non_finite = NO_PARTIAL;
    for (var at = lane; at < segment.count; at += WORKGROUP_SIZE) {
        let partial = segment.first + at;
        sum += share(partial, segment, reference_of(all));
        if (partial_at(partial).largest >= INFINITY) {
            first_non_finite = min(first_non_finite, partial);
        }
    }
    // The place of a magnitude carries the index, whose smallest is looked for.
    let total = reduce(lane, Partial(sum, first_non_finite, 0u, Counts()));
    if (lane == 0u) {
        leave(index, segment, found(total.sum, all, segment.count), all.largest, total.smallest, all.counts);
    }
}

// What a partial adds to the sum.
fn share(index: u32, segment: Segment, reference: u32) -> f32 {
    let partial = partial_at(index);
    if (POWER != 0.0) {
        return partial.sum * term(reference_of(partial), reference);
    }
    // A gradient counts once, with the first of its tiles that is not zero.
    for (var before = index; before > segment.first && owners[before - 1u] == owners[index]; before -= 1u) {
        if (partial_at(before - 1u).sum != 0.0) {
            return 0.0;
        }
    }
    return partial.sum;
}

fn found(sum: f32, all: Partial, count: u32) -> Found {
    if (POWER == 0.0) {
        if (sum == 0.0) {
            return special(0u);
        }
        return counted(sum);
    }
    if (all.largest > INFINITY) {
        return special(NAN);
    }
    let reference = reference_of(all);
    if (count == 0u || reference == 0u) {
        return special(0u);
    }
    if (reference >= INFINITY) {
        return special(INFINITY);
    }
    let own = exponent_of(reference);
    // Beyond these bounds the norm has long left f32.
    let root = clamp(log2(sum) / POWER, -4096.0, 4096.0);
    return regular(scaled_down(reference, own) * exp2(root - floor(root)), own + i32(floor(root)));
}
