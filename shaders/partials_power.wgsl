// Norm, stage 1, for a plain p: what each tile adds to the norm, element by element.
//
// One workgroup a tile: first its smallest and largest magnitude, then the sum of the terms that refer to one of them.

@group(0) @binding(1) var<storage, read_write> partials: array<Partial>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = tile_index(workgroup, grid);
    if (index >= arrayLength(&tiles)) {
        return;
    }
    let tile = tiles[index];
    var own = NOTHING;
    for (var at = lane; at < tile.count; at += WORKGROUP_SIZE) {
        let magnitude = magnitude_at(tile, at);
        let counts = Counts(select(0u, 1u, magnitude == 0u), select(0u, 1u, magnitude >= INFINITY));
        own = join(own, Partial(0.0, magnitude, magnitude, counts));
    }
    var total = reduce(lane, own);
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
        partials[tile.target_index] = total;
    }
}

fn magnitude_at(tile: Tile, at: u32) -> u32 {
    let element = tile.first + at;
    return widened(load_word(tile.slot, element / PER_WORD), element % PER_WORD) & MAGNITUDE;
}
