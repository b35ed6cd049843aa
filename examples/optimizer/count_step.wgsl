// Counts the steps, before the optimizer reads the counts. One invocation.

@group(0) @binding(0) var<storage, read> record: ClipRecord;
@group(0) @binding(1) var<storage, read_write> step_counts: StepCounts;

@compute @workgroup_size(1)
fn main() {
    if ((record.flags & (CLIP_RECORD_UNMEASURED | CLIP_RECORD_NORM_MISSING)) == 0u) {
        step_counts.steps += 1u;
        step_counts.skipped += select(0u, 1u, (record.flags & CLIP_RECORD_SKIP) != 0u);
    }
}
