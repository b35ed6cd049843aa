// Norm pass, after the limits are final: copies the norm and the factor of each record to arrays of f32, for frameworks in
// which these are tensors. Finalize writes both arrays if no later stage changes the records (record_and_factor.wgsl).
//
// One invocation for each record.
//
// requires: workgroup, clip_record
// binds: records, norms, factors
// constants: WORKGROUP_SIZE

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
    norms[index] = records[index].total_norm;
    factors[index] = records[index].factor;
}
