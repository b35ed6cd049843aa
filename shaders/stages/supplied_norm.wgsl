// Norm pass, for a clip by supplied norm: makes the records from the norm that the caller supplies.
//
// One invocation for each segment.
//
// requires: workgroup, segment, clip_coef, clip_record, float_bits, extended
// binds: segments, supplied_norm, records
// constants: WORKGROUP_SIZE

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = invocation_index(workgroup, grid, lane);
    if (index >= arrayLength(&segments)) {
        return;
    }
    let bits = supplied_norm[0]; // without the loss scale
    if (bits == NO_NORM) {
        records[index] = record_without_norm(CLIP_RECORD_NORM_MISSING, CLIP_RECORD_NO_GRADIENT);
        return;
    }
    var norm = extended(bits);
    if ((norm.significand & SIGN) != 0u) {
        // The sign of a zero is ignored; a negative norm is invalid.
        norm = Extended(select(NAN, 0u, norm.significand == SIGN), 0);
    }
    var record = ClipRecord();
    record.first_non_finite = CLIP_RECORD_NO_GRADIENT;
    record.norm_significand = bitcast<f32>(norm.significand);
    record.norm_exponent = norm.exponent;
    set_clip_coef(&record, extended(bitcast<u32>(segments[index].max_norm)));
    records[index] = record;
}
