// The opening of a stage that does something small for each of many items, an invocation each.
//
// Needs a stage's `items`, how many there are, and its `each`, what to do for one; workgroup.wgsl.

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // A grid may be folded into two dimensions, with up to a row too many.
    let index = (workgroup.y * grid.x + workgroup.x) * WORKGROUP_SIZE + lane;
    if (index < items()) {
        each(index);
    }
}
