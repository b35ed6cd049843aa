// Writes the record of a segment.
//
// provides: write_output, write_missing
// requires: segment, new_record, clip_record, counts, extended
// binds: records

// `norm` and `largest`, the bits of the largest magnitude, are without the loss scale. `first_non_finite` is the index of the
// first non-finite partial, or NO_PARTIAL.
fn write_output(
    index: u32,
    segment: Segment,
    norm: Extended,
    largest: u32,
    first_non_finite: u32,
    counts: Counts,
) {
    records[index] = new_record(segment, norm, largest, first_non_finite);
}

// Writes the record of a segment with missing partials. `first_missing` is the index of the first.
fn write_missing(index: u32, first_missing: u32) {
    records[index] = record_of_missing(first_missing);
}
