// Norm, stage 1: what each tile adds to the norm.
//
//   partials[tile.target_index] = (Σ g², max |g|)    for the L2 norm, over the elements g of the tile
//
// One workgroup a tile. The order of the sum depends on nothing but the tile's length: not on where the tile lies,
// how it is read or how many there are. Each invocation keeps 16 sums, so that none is a chain of more than 17
// terms for the largest tile, and a tree joins them: that is where the accuracy comes from.

@group(0) @binding(1) var<storage, read_write> partials: array<Partial>;

alias Item = Partial;

fn join(a: Item, b: Item) -> Item {
    return combine(a, b);
}

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

    var total = reduce(lane, sum_of(tile, lane));
    if (needs_rescue(total.largest)) {
        var rescued: Partial;
        rescued.sum = rescued_sum_of(tile, lane, exponent_of(total.largest));
        total.sum = reduce(lane, rescued).sum;
        total.largest |= RESCUED;
    }
    if (lane == 0u) {
        // Where it ends within a vector, the rest of that was read as zeros.
        let padding = (PER_VECTOR - tile.count % PER_VECTOR) % PER_VECTOR;
        partials[tile.target_index] = without_zeros(total, padding);
    }
}

// What one invocation adds: four vectors at a time, their loads in flight together, and where the elements leave registers for
// it those of the next four too.
fn sum_of(tile: Tile, lane: u32) -> Partial {
    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    var tally = Tally();
    var at = PER_VECTOR * lane;
    let blocks = tile.count / (4u * STRIDE);
    var next: Block;
    if (LOADS_AHEAD && blocks > 0u) {
        next = block_at(tile, at);
    }
    for (var left = blocks; left > 0u; left -= 1u) {
        var block = next;
        if (LOADS_AHEAD) {
            // The last time the same again, which is in a cache.
            next = block_at(tile, select(at, at + 4u * STRIDE, left > 1u));
        } else {
            block = block_at(tile, at);
        }
        sum0 = add_words(sum0, block.v0);
        sum1 = add_words(sum1, block.v1);
        sum2 = add_words(sum2, block.v2);
        sum3 = add_words(sum3, block.v3);
        tally = tally_words(tally_words(tally, block.v0), block.v1);
        tally = tally_words(tally_words(tally, block.v2), block.v3);
        at += 4u * STRIDE;
    }
    for (; at < tile.count; at += STRIDE) {
        let words = load_to_end(tile, at);
        sum0 = add_words(sum0, words);
        tally = tally_words(tally, words);
    }
    return partial_of(total_of(((sum0 + sum1) + sum2) + sum3), tally);
}

// The same for a tile out of the plain range: the same additions in the same order, so that a power of two times the
// gradients is that power of two times the norm, whichever way their tiles went. Rare, so it is short instead of fast: one
// of the four sums after the other.
fn rescued_sum_of(tile: Tile, lane: u32, exponent: i32) -> f32 {
    let blocks_end = tile.count - tile.count % (4u * STRIDE);
    var total = vec4<f32>();
    for (var number = 0u; number < 4u; number += 1u) {
        // What fills no block is part of the first sum.
        let end = select(blocks_end, tile.count, number == 0u);
        var sum = vec4<f32>();
        for (var at = PER_VECTOR * lane + number * STRIDE; at < end; at += select(STRIDE, 4u * STRIDE, at < blocks_end)) {
            sum = add_rescued_words(sum, load_to_end(tile, at), exponent);
        }
        total += sum;
    }
    return total_of(total);
}

fn total_of(sum: vec4<f32>) -> f32 {
    return (sum.x + sum.y) + (sum.z + sum.w);
}
