// The index of a workgroup and of an invocation in a dispatch.
//
// Every entry point has the same three built-in parameters. They cannot be members of one struct: WGSL's uniformity analysis
// takes a struct with `local_invocation_index` as a whole to be non-uniform, and then rejects the barriers of `reduce`.
//
// provides: workgroup_index, invocation_index
// constants: WORKGROUP_SIZE

// Returns the index of the workgroup. The host folds a long dispatch into two dimensions, which may dispatch a few workgroups
// too many: every stage checks this index.
fn workgroup_index(workgroup: vec3<u32>, grid: vec3<u32>) -> u32 {
    return workgroup.y * grid.x + workgroup.x;
}

// Returns the index of the invocation, for stages that have one invocation for each item.
fn invocation_index(workgroup: vec3<u32>, grid: vec3<u32>, lane: u32) -> u32 {
    return workgroup_index(workgroup, grid) * WORKGROUP_SIZE + lane;
}
