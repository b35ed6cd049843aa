// Computes the partial of a run of elements that a workgroup holds in registers: the stage `partials` without its loads.
// It is not part of a kernel; `producer.rs` exports it to the shaders of callers.
//
// provides: partial_of_run
// requires: elements, partials, norms, reduce, accumulate, float_bits, counts
// constants: STRIDE, VECTORS

// Returns the partial of `count` elements, in its form in memory, to every invocation. All invocations of the workgroup must call it.
//
// `vectors` holds the words as stored in the buffer: vector k of invocation `lane` is vector `lane + k * WORKGROUP_SIZE` of the
// run. Elements past the end are 0. The order of additions is that of the stage `partials` for a tile of `count` elements.
fn partial_of_run(lane: u32, count: u32, vectors: array<vec4<u32>, VECTORS>) -> Partial {
    var held = vectors;
    let in_blocks = 4u * (count / (4u * STRIDE));
    var sums = array<vec4<f32>, 4>();
    var tally = Tally();
    for (var k = 0u; k < VECTORS; k += 1u) {
        if (ELEMENTS_PER_VECTOR * lane + k * STRIDE < count) {
            let number = select(0u, k % 4u, k < in_blocks);
            sums[number] = add_vector(sums[number], held[k]);
            tally = tally_vector(tally, held[k]);
        }
    }
    let sum = total_of_four(sums[0], sums[1], sums[2], sums[3]);
    var partial = reduce(lane, new_partial(sum, magnitude_of_tally(tally), counts_of_tally(tally)));
    if (needs_scaling(partial.largest)) {
        let exponent = exponent_of(partial.largest);
        var scaled = array<vec4<f32>, 4>();
        for (var k = 0u; k < VECTORS; k += 1u) {
            if (ELEMENTS_PER_VECTOR * lane + k * STRIDE < count) {
                let number = select(0u, k % 4u, k < in_blocks);
                scaled[number] = add_scaled_vector(scaled[number], held[k], exponent);
            }
        }
        let total = total_of_four(scaled[0], scaled[1], scaled[2], scaled[3]);
        partial.sum = reduce(lane, new_partial(total, 0u, Counts())).sum;
        partial.largest |= SCALED;
    }
    // The last vector of a run is padded with zeros.
    let padding = (ELEMENTS_PER_VECTOR - count % ELEMENTS_PER_VECTOR) % ELEMENTS_PER_VECTOR;
    return memory_form(without_padding(partial, padding));
}
