// Norm, for one that the caller supplies: the record that follows from it.
//
// One invocation a segment.

@group(0) @binding(0) var<storage, read> supplied: array<f32>; // one, without the loss scale

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(global_invocation_id) invocation: vec3<u32>) {
    if (invocation.x >= arrayLength(&segments)) {
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
    conclude(&record, norm, segments[invocation.x].max_norm);
    records[invocation.x] = record;
}
