// Writes the only record of a plan, counts its step and updates the loss scale: `stages/conclude.wgsl` without a dispatch of its
// own.
//
// provides: write_output, write_missing
// requires: segment, new_record, clip_record, step_counts, conclude, counts, extended
// binds: records, step_counts

// See record.wgsl for the parameters.
fn write_output(
    index: u32,
    segment: Segment,
    norm: Extended,
    largest: u32,
    first_non_finite: u32,
    counts: Counts,
) {
    var record = new_record(segment, norm, largest, first_non_finite);
    var state = step_counts[index];
    conclude_record(&record, &state);
    records[index] = record;
    step_counts[index] = state;
    update_loss_scale(is_overflow(record));
}

// The step does not count.
fn write_missing(index: u32, first_missing: u32) {
    records[index] = record_of_missing(first_missing);
}
