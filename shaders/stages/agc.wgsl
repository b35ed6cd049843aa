// Norm pass, after finalize, for adaptive gradient clipping (AGC): computes the coefficients again, with limits relative to the
// norms of the parameters. A. Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization" (2021).
//
//   limit = max_norm * max(norm of the parameter, floor)    where max_norm is the allowed ratio
//
// One invocation for each segment.
//
// requires: workgroup, segment, clip_coef, clip_record, float_bits, extended
// binds: segments, norm_params, parameter_records, records
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
    var record = records[index];
    if (!clip_record_has_norm(record)) {
        return;
    }
    let parameter = parameter_records[index];
    if (!clip_record_has_norm(parameter)) {
        // The parameter was not measured in this step.
        records[index] = parameter;
        return;
    }
    let limit = agc_limit(norm_of_record(parameter), segments[index].max_norm);
    set_clip_coef(&record, limit);
    records[index] = record;
}

// Returns the limit. Infinities and NaNs are detected by their bits.
fn agc_limit(parameter_norm: Extended, max_norm: f32) -> Extended {
    let ratio = extended(bitcast<u32>(max_norm));
    if ((ratio.significand & MAGNITUDE) >= INFINITY) {
        return ratio;
    }
    if (parameter_norm.significand >= INFINITY) {
        let is_nan = parameter_norm.significand > INFINITY || ratio.significand == 0u;
        return Extended(select(INFINITY, NAN, is_nan), 0);
    }
    let floor = extended(bitcast<u32>(norm_params.floor));
    if (exceeds(floor, parameter_norm)) {
        return extended_product(ratio, floor);
    }
    return extended_product(ratio, parameter_norm);
}
