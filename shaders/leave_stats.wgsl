// What is left of a segment that is one gradient: its statistics.
//
// Interface: `leave`. Needs segment.wgsl, tensor_stats.wgsl, found.wgsl, float_bits.wgsl, counts.wgsl.

@group(0) @binding(4) var<storage, read_write> stats: array<TensorStats>;

fn leave(index: u32, segment: Segment, found: Found, largest: u32, first_non_finite: u32, counts: Counts) {
    var norm = found.bits;
    if (!found.special) {
        let unscaled = without_loss_scale(found);
        norm = scaled_up(unscaled.value, unscaled.exponent);
    }
    let magnitude = bitcast<f32>(unscaled_magnitude(largest));
    stats[index] = TensorStats(bitcast<f32>(norm), magnitude, counts.non_finite, counts.zeros);
}
