// Norm pass, first stage: reduces each tile to a partial.
//
//   partials[tile.target_index] = (Σ g², max |g|)    for the L2 norm, over the elements g of the tile
//
// One workgroup for each tile. The order of additions depends only on the length of the tile, not on its address, its
// alignment or the number of tiles. Each invocation keeps 16 sums, so that no chain is longer than 17 terms in the largest
// tile, and a tree adds them up. The accuracy comes from these short chains.
//
// requires: workgroup, tile, elements, loads, partials, norms, reduce, float_bits, counts
// binds: tiles, partials
// constants: WORKGROUP_SIZE, STRIDE

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

    var partial = reduce(lane, partial_of(tile, lane));
    if (needs_scaling(partial.largest)) {
        let exponent = exponent_of(partial.largest);
        partial.sum = reduce(lane, new_partial(scaled_sum_of(tile, lane, exponent), 0u, Counts())).sum;
        partial.largest |= SCALED;
    }
    if (lane == 0u) {
        // The last vector of a tile is padded with zeros.
        let padding = (ELEMENTS_PER_VECTOR - tile.count % ELEMENTS_PER_VECTOR) % ELEMENTS_PER_VECTOR;
        partials[tile.target_index] = without_padding(partial, padding);
    }
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
    var next: Block;
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
    let counts = Counts(sum_of_lanes(tally.zeros), sum_of_lanes(tally.non_finite));
    let key = max(max(tally.largest_key.x, tally.largest_key.y), max(tally.largest_key.z, tally.largest_key.w));
    return new_partial(total_of(((sum0 + sum1) + sum2) + sum3), magnitude_of_key(key), counts);
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

// The sum is meaningless if an element is not finite; the largest key of the tally then shows that.
fn add_vector(sum: vec4<f32>, words: vec4<u32>) -> vec4<f32> {
    let even = accumulate(sum, widen_even_finite(words));
    if (ELEMENTS_PER_WORD == 1u) {
        return even;
    }
    return accumulate(even, widen_odd_finite(words));
}

fn add_scaled_vector(sum: vec4<f32>, words: vec4<u32>, exponent: i32) -> vec4<f32> {
    let even = accumulate_scaled(sum, widen_even(words), exponent);
    if (ELEMENTS_PER_WORD == 1u) {
        return even;
    }
    return accumulate_scaled(even, widen_odd(words), exponent);
}

// The largest key and the counts of one invocation, for each of four lanes. The counts are unused unless COUNTED.
struct Tally {
    largest_key: vec4<u32>,
    zeros: vec4<u32>,
    non_finite: vec4<u32>,
}

fn tally_vector(tally: Tally, words: vec4<u32>) -> Tally {
    if (ELEMENTS_PER_WORD == 1u) {
        return tally_upper(tally, words);
    }
    return tally_upper(tally_upper(tally, words << vec4(16u)), words);
}

// Adds the element in the upper bits of each word.
fn tally_upper(tally: Tally, words: vec4<u32>) -> Tally {
    let keys = words & vec4(KEY_MASK);
    var next = tally;
    next.largest_key = max(tally.largest_key, keys);
    if (COUNTED) {
        next.zeros += select(vec4(0u), vec4(1u), keys == vec4(0u));
        next.non_finite += select(vec4(0u), vec4(1u), keys >= vec4(INFINITY_KEY));
    }
    return next;
}

fn sum_of_lanes(count: vec4<u32>) -> u32 {
    return (count.x + count.y) + (count.z + count.w);
}

fn total_of(sum: vec4<f32>) -> f32 {
    return (sum.x + sum.y) + (sum.z + sum.w);
}
