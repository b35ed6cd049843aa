// An elementwise operation on single elements of 16 bits, in place: the edges that do not fill a vector.
//
// The other half of a word may belong to somebody else, whose own edge may be written in the same moment: the word is
// exchanged for the one with the new half, as often as it takes.
//
// One workgroup a tile of a few elements. Needs an operation, elements of a 16-bit type, the slots of atomic words
// (gpu/slots.rs), tile.wgsl.

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = tile_index(workgroup, grid);
    if (index >= arrayLength(&tiles) || nothing_to_do(tiles[index].target_index)) {
        return;
    }
    let tile = tiles[index];
    for (var at = lane; at < tile.count; at += WORKGROUP_SIZE) {
        change_half(tile, tile.first + at);
    }
}

fn change_half(tile: Tile, element: u32) {
    let word = element / 2u;
    let shift = 16u * (element % 2u);
    let own = vec4(widened(load_atomic(tile.slot, word), element % 2u));
    let changed = apply(own, tile.target_index);
    // A NaN too is left with the bits that it has.
    if (changed.x == own.x) {
        return;
    }
    let half = narrowed(changed).x << shift;
    loop {
        let old = load_atomic(tile.slot, word);
        if (exchange(tile.slot, word, old, (old & ~(0xffffu << shift)) | half)) {
            break;
        }
    }
}
