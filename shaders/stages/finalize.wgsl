// Norm pass, second stage: reduces the partials of each segment to its norm, and writes its output.
//
// One workgroup for each segment.
//
// requires: workgroup, segment, finalize
// binds: segments
// constants: WORKGROUP_SIZE

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
    finalize_segment(index, lane);
}
