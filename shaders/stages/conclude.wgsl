// Norm pass, after the limits are final: applies the rules that keep state to all records, and updates the loss scale.
//
// One invocation for each record; with a dynamic loss scale, a single workgroup for all of them.
//
// requires: workgroup, clip_record, step_counts, conclude
// binds: records, step_counts
// constants: WORKGROUP_SIZE

const OVERFLOW: u32 = 1u;
const MISSING_NORM: u32 = 2u;

// The events of all records, combined: OVERFLOW, MISSING_NORM.
var<workgroup> sh_events: atomic<u32>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if (lane == 0u) {
        atomicStore(&sh_events, 0u);
    }
    workgroupBarrier();
    let stride = grid.x * grid.y * WORKGROUP_SIZE;
    for (var index = invocation_index(workgroup, grid, lane); index < arrayLength(&records); index += stride) {
        var record = records[index];
        // Without a norm, the step does not count.
        if (!clip_record_has_norm(record)) {
            atomicOr(&sh_events, MISSING_NORM);
            continue;
        }
        var counts = step_counts[index];
        conclude_record(&record, &counts);
        records[index] = record;
        step_counts[index] = counts;
        if (is_overflow(record)) {
            atomicOr(&sh_events, OVERFLOW);
        }
    }
    workgroupBarrier();
    if (lane == 0u && workgroup_index(workgroup, grid) == 0u) {
        let events = atomicLoad(&sh_events);
        if ((events & MISSING_NORM) == 0u) {
            update_loss_scale((events & OVERFLOW) != 0u);
        }
    }
}
