// Norm pass, after the limits are final: counts steps by the outcome in their records.
//
// One invocation for each record.
//
// requires: workgroup, clip_record, float_bits
// binds: records, step_counts
// constants: WORKGROUP_SIZE

struct StepCounts {
    steps: u32,
    clipped: u32,
    non_finite: u32,
    largest_norm: f32, // the largest finite norm
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = invocation_index(workgroup, grid, lane);
    if (index >= arrayLength(&records)) {
        return;
    }
    let flags = records[index].flags;
    if ((flags & CLIP_RECORD_NORM_MISSING) != 0u) {
        return;
    }
    let norm = bitcast<u32>(records[index].total_norm);
    var counts = step_counts[index];
    counts.steps += 1u;
    counts.clipped += select(0u, 1u, (flags & CLIP_RECORD_CLIPPED) != 0u);
    counts.non_finite += select(0u, 1u, (flags & CLIP_RECORD_NON_FINITE) != 0u);
    // Magnitudes are ordered as their bits are.
    if (norm < INFINITY) {
        counts.largest_norm = bitcast<f32>(max(bitcast<u32>(counts.largest_norm), norm));
    }
    step_counts[index] = counts;
}
