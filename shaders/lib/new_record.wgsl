// The record of a segment that has been measured.
//
// provides: new_record, record_of_missing
// requires: segment, clip_coef, clip_record, extended
// binds: gradient_of_partial

// `norm` and `largest`, the bits of the largest magnitude, are without the loss scale. `first_non_finite` is the index of the
// first non-finite partial, or NO_PARTIAL.
fn new_record(segment: Segment, norm: Extended, largest: u32, first_non_finite: u32) -> ClipRecord {
    var record = ClipRecord();
    record.norm_significand = bitcast<f32>(norm.significand);
    record.norm_exponent = select(norm.exponent, CLIP_RECORD_EMPTY_EXPONENT, segment.count == 0u);
    record.max_magnitude = bitcast<f32>(largest);
    record.first_non_finite = CLIP_RECORD_NO_GRADIENT;
    if (first_non_finite != NO_PARTIAL) {
        record.first_non_finite = gradient_of_partial[first_non_finite];
    }
    set_clip_coef(&record, extended(bitcast<u32>(segment.max_norm)));
    return record;
}

// The record of a segment with missing partials. `first_missing` is the index of the first.
fn record_of_missing(first_missing: u32) -> ClipRecord {
    return record_without_norm(CLIP_RECORD_PART_MISSING | CLIP_RECORD_SKIP, gradient_of_partial[first_missing]);
}
