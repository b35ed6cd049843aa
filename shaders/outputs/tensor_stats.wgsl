// Writes the statistics of a segment that is one gradient.
//
// provides: write_output, write_missing
// requires: segment, tensor_stats, counts, extended, partials
// binds: tensor_stats

// See record.wgsl for the parameters; `first_non_finite` is unused.
fn write_output(
    index: u32,
    segment: Segment,
    norm: Extended,
    largest: u32,
    first_non_finite: u32,
    counts: Counts,
) {
    let norm_f32 = bitcast<f32>(nearest_f32(norm));
    tensor_stats[index] = TensorStats(norm_f32, bitcast<f32>(largest), counts.non_finite, counts.zeros);
}

// Marks the statistics as unmeasured: no tensor has so many zeros and non-finite elements.
fn write_missing(index: u32, first_missing: u32) {
    tensor_stats[index] = TensorStats(0.0, 0.0, MISSING, MISSING);
}
