// Norm, last stage: what the records say is counted over the steps.
//
// An invocation a record (per_invocation.wgsl). Needs record.wgsl, float_bits.wgsl.

struct StepCounts {
    steps: u32,
    clipped: u32,
    non_finite: u32,
    largest_norm: f32, // of those that are finite
}

@group(0) @binding(0) var<storage, read> records: array<ClipRecord>;
@group(0) @binding(1) var<storage, read_write> counts: array<StepCounts>;

fn items() -> u32 {
    return arrayLength(&records);
}

fn each(index: u32) {
    let flags = records[index].flags;
    if ((flags & CLIP_RECORD_NORM_MISSING) != 0u) {
        return;
    }
    let norm = bitcast<u32>(records[index].total_norm);
    var count = counts[index];
    count.steps += 1u;
    count.clipped += select(0u, 1u, (flags & CLIP_RECORD_CLIPPED) != 0u);
    count.non_finite += select(0u, 1u, (flags & CLIP_RECORD_NON_FINITE) != 0u);
    // Magnitudes are ordered as their bits are.
    if (norm < INFINITY) {
        count.largest_norm = bitcast<f32>(max(bitcast<u32>(count.largest_norm), norm));
    }
    counts[index] = count;
}
