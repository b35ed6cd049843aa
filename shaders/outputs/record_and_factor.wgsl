// Writes the record of a segment, and copies its norm and its factor to arrays of f32, for frameworks in which these are
// tensors.
//
// provides: write_output, write_missing
// requires: segment, new_record, clip_record, counts, extended
// binds: records, norms, factors

// See record.wgsl for the parameters.
fn write_output(
    index: u32,
    segment: Segment,
    norm: Extended,
    largest: u32,
    first_non_finite: u32,
    counts: Counts,
) {
    let record = new_record(segment, norm, largest, first_non_finite);
    records[index] = record;
    norms[index] = record.total_norm;
    factors[index] = record.factor;
}

fn write_missing(index: u32, first_missing: u32) {
    let record = record_of_missing(first_missing);
    records[index] = record;
    norms[index] = record.total_norm;
    factors[index] = record.factor;
}
