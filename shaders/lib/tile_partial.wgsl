// The partial of a tile.
//
// The order of additions depends only on the length of the tile, not on its address, its alignment or the number of tiles. Each
// invocation keeps 16 sums, so that no chain is longer than 17 terms in the largest tile, and a tree adds them up. The accuracy
// comes from these short chains.
//
// provides: partial_of_tile
// requires: tile, elements, loads, partials, norms, reduce, accumulate, float_bits, counts
// constants: STRIDE

// Returns the partial of a tile to every invocation. All invocations must call it.
fn partial_of_tile(tile: Tile, lane: u32) -> Partial {
    var partial = reduce(lane, partial_of(tile, lane));
    if (needs_scaling(partial.largest)) {
        let exponent = exponent_of(partial.largest);
        partial.sum = reduce(lane, new_partial(scaled_sum_of(tile, lane, exponent), 0u, Counts())).sum;
        partial.largest |= SCALED;
    }
    // The last vector of a tile is padded with zeros.
    let padding = (ELEMENTS_PER_VECTOR - tile.count % ELEMENTS_PER_VECTOR) % ELEMENTS_PER_VECTOR;
    return without_padding(partial, padding);
}

// Reduces the elements of one invocation, four vectors at a time, with their loads in flight together. With PREFETCH, the next
// four are in flight too.
fn partial_of(tile: Tile, lane: u32) -> Partial {
    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    var tally = Tally();
    var at = ELEMENTS_PER_VECTOR * lane;
    let blocks = tile.count / (4u * STRIDE);
    var next = Block();
    if (PREFETCH && blocks > 0u) {
        next = load_block(tile, at);
    }
    for (var left = blocks; left > 0u; left -= 1u) {
        var block = next;
        if (PREFETCH) {
            // The last iteration loads its own block again, from the cache.
            next = load_block(tile, select(at, at + 4u * STRIDE, left > 1u));
        } else {
            block = load_block(tile, at);
        }
        sum0 = add_vector(sum0, block.v0);
        sum1 = add_vector(sum1, block.v1);
        sum2 = add_vector(sum2, block.v2);
        sum3 = add_vector(sum3, block.v3);
        tally = tally_vector(tally_vector(tally, block.v0), block.v1);
        tally = tally_vector(tally_vector(tally, block.v2), block.v3);
        at += 4u * STRIDE;
    }
    for (; at < tile.count; at += STRIDE) {
        let words = load_to_end(tile, at);
        sum0 = add_vector(sum0, words);
        tally = tally_vector(tally, words);
    }
    let sum = total_of_four(sum0, sum1, sum2, sum3);
    return new_partial(sum, magnitude_of_tally(tally), counts_of_tally(tally));
}

// Adds up the scaled elements of one invocation, in the same order as `partial_of`: the norm of gradients times a power of
// two is the norm times that power, whether their tiles need scaling or not. It is rare, so it is short instead of fast: one
// of the four sums after the other.
fn scaled_sum_of(tile: Tile, lane: u32, exponent: i32) -> f32 {
    let blocks_end = tile.count - tile.count % (4u * STRIDE);
    var total = vec4<f32>();
    for (var number = 0u; number < 4u; number += 1u) {
        // Vectors that fill no block belong to the first sum.
        let end = select(blocks_end, tile.count, number == 0u);
        var sum = vec4<f32>();
        for (
            var at = ELEMENTS_PER_VECTOR * lane + number * STRIDE;
            at < end;
            at += select(STRIDE, 4u * STRIDE, at < blocks_end)
        ) {
            sum = add_scaled_vector(sum, load_to_end(tile, at), exponent);
        }
        total += sum;
    }
    return total_of(total);
}
