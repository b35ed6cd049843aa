// Norm, for one that the caller supplies: the record that follows from it.
//
// One invocation a segment. Needs segment.wgsl, conclude.wgsl, record.wgsl, float_bits.wgsl.

@group(0) @binding(0) var<storage, read> supplied: array<f32>; // one, without the loss scale
@group(0) @binding(4) var<storage, read_write> records: array<ClipRecord>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (workgroup.y * grid.x + workgroup.x) * WORKGROUP_SIZE + lane;
    if (index >= arrayLength(&segments)) {
        return;
    }
    let norm = bitcast<u32>(supplied[0]);
    var record: ClipRecord;
    if (norm != 0u && norm < INFINITY) {
        record.norm_exponent = exponent_of(norm);
        record.norm_significand = scaled_down(norm, record.norm_exponent);
    } else {
        record.norm_significand = supplied[0];
    }
    record.first_non_finite = NO_GRADIENT;
    conclude(&record, norm, segments[index].max_norm);
    records[index] = record;
}
