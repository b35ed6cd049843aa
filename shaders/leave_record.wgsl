// What is left of a segment: the record of its clip.
//
// Interface: `records`, `leave`. Needs segment.wgsl, conclude.wgsl, record.wgsl, found.wgsl, float_bits.wgsl, counts.wgsl.

@group(0) @binding(4) var<storage, read_write> records: array<ClipRecord>;

// Writes the record of a segment with this norm and largest magnitude, whose first partial that is not finite is this.
fn leave(index: u32, segment: Segment, found: Found, largest: u32, first_non_finite: u32, counts: Counts) {
    var record: ClipRecord;
    record.norm_significand = bitcast<f32>(found.bits);
    if (!found.special) {
        let unscaled = without_loss_scale(found);
        record.norm_significand = unscaled.value;
        record.norm_exponent = unscaled.exponent;
    }
    if (segment.count == 0u) {
        record.norm_exponent = EMPTY_EXPONENT;
    }
    record.max_magnitude = bitcast<f32>(unscaled_magnitude(largest));
    record.first_non_finite = NO_GRADIENT;
    if (first_non_finite != NO_PARTIAL) {
        record.first_non_finite = owners[first_non_finite];
    }
    conclude(&record, wide(bitcast<u32>(segment.max_norm)));
    records[index] = record;
}
