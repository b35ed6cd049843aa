// An elementwise operation on whole vectors, in place. Vectors that it leaves as they are are not stored.
//
// One workgroup a tile; it begins at a vector and is made of whole ones. Needs an operation, `each_of` and `each_plain_of` for the
// type of the elements, the slots of vectors (gpu/slots.rs), tile.wgsl.

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
    let own = tile.target_index;
    var at = PER_VECTOR * lane;
    // Four vectors at a time, their loads in flight together. Non-plain tiles are rare and use the tail loop.
    for (var blocks = select(0u, tile.count / (4u * STRIDE), is_plain(own)); blocks > 0u; blocks -= 1u) {
        let word = (tile.first + at) / PER_WORD;
        let old = load_block(tile.slot, word, STRIDE / PER_WORD);
        let new_block = Block(
            each_plain_of(old.v0, own),
            each_plain_of(old.v1, own),
            each_plain_of(old.v2, own),
            each_plain_of(old.v3, own),
        );
        store_block(tile.slot, word, STRIDE / PER_WORD, old, new_block);
        at += 4u * STRIDE;
    }
    for (; at < tile.count; at += STRIDE) {
        let word = (tile.first + at) / PER_WORD;
        let old = load(tile.slot, word);
        store(tile.slot, word, old, each_of(old, own));
    }
}
