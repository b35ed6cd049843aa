// Norm pass for general p, first stage: reduces each tile to a partial, element by element.
//
// One workgroup for each tile. It finds the smallest and the largest magnitude, and then sums the terms relative to one
// of them.
//
// requires: workgroup, tile, elements, slots, partials, norms, reduce, float_bits, counts
// binds: tiles, partials
// constants: WORKGROUP_SIZE, POWER

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup_index(workgroup, grid);
    if (index >= arrayLength(&tiles)) {
        return;
    }
    let tile = tiles[index];
    var partial = NO_ELEMENTS;
    for (var at = lane; at < tile.count; at += WORKGROUP_SIZE) {
        let magnitude = magnitude_at(tile, at);
        let counts = Counts(select(0u, 1u, magnitude == 0u), select(0u, 1u, magnitude >= INFINITY));
        partial = combine(partial, Partial(0.0, magnitude, magnitude, counts));
    }
    var total = reduce(lane, partial);
    if (POWER == 0.0) {
        total.sum = select(0.0, 1.0, total.largest > 0u);
    } else {
        let reference = reference_of(total);
        var sum = 0.0;
        for (var at = lane; at < tile.count; at += WORKGROUP_SIZE) {
            sum += term(magnitude_at(tile, at), reference);
        }
        total.sum = reduce(lane, Partial(sum, 0u, 0u, Counts())).sum;
    }
    if (lane == 0u) {
        partials[tile.target_index] = memory_form(total);
    }
}

fn magnitude_at(tile: Tile, at: u32) -> u32 {
    let element = tile.first + at;
    let word = load_word(tile.slot, element / ELEMENTS_PER_WORD);
    return widen_element(word, element % ELEMENTS_PER_WORD) & MAGNITUDE;
}
