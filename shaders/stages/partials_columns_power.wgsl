// Norm pass for general p, first stage, for gradients whose columns have their own norms: reduces each column of a block to a
// partial, row by row; see partials_columns.wgsl.
//
// requires: workgroup, column_tile, elements, slots, partials, norms, float_bits, counts
// binds: column_tiles, partials
// constants: WORKGROUP_SIZE, POWER

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup_index(workgroup, grid);
    if (index >= arrayLength(&column_tiles)) {
        return;
    }
    let tile = column_tiles[index];
    if (lane >= tile.count) {
        return;
    }
    var total = NO_ELEMENTS;
    for (var row = 0u; row < tile.extent; row += 1u) {
        let magnitude = magnitude_at(tile, lane, row);
        let counts = Counts(select(0u, 1u, magnitude == 0u), select(0u, 1u, magnitude >= INFINITY));
        total = combine(total, Partial(0.0, magnitude, magnitude, counts));
    }
    if (POWER == 0.0) {
        total.sum = select(0.0, 1.0, total.largest > 0u);
    } else {
        let reference = reference_of(total);
        // Chains of at most 16 terms.
        for (var row = 0u; row < tile.extent; row += 16u) {
            var sum = 0.0;
            for (var at = row; at < min(row + 16u, tile.extent); at += 1u) {
                sum += term(magnitude_at(tile, lane, at), reference);
            }
            total.sum += sum;
        }
    }
    partials[tile.target_index + lane * tile.target_stride] = memory_form(total);
}

fn magnitude_at(tile: ColumnTile, lane: u32, row: u32) -> u32 {
    let element = tile.first + row * tile.columns + lane;
    let word = load_word(tile.slot, element / ELEMENTS_PER_WORD);
    return widen_element(word, element % ELEMENTS_PER_WORD) & MAGNITUDE;
}
