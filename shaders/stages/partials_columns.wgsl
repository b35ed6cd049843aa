// Norm pass, first stage, for gradients whose columns have their own norms: reduces each column of a block to a partial.
//
//   partials[target_index + column * target_stride] = (Σ g², max |g|)    for the L2 norm, over the rows of the block
//
// One workgroup for each block of up to WORKGROUP_SIZE columns, one invocation for each column. Neighbouring invocations read
// neighbouring elements. The order of additions depends only on the shape of the gradient. Each invocation keeps 16 sums, so
// that no chain is longer than 16 terms.
//
// requires: workgroup, column_tile, elements, slots, partials, norms, float_bits, counts
// binds: column_tiles, partials
// constants: WORKGROUP_SIZE

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
    var partial = partial_of(tile, lane);
    if (needs_scaling(partial.largest)) {
        partial.sum = scaled_sum_of(tile, lane, exponent_of(partial.largest));
        partial.largest |= SCALED;
    }
    // The last sixteen rows are padded with zeros.
    partial = without_padding(partial, (16u - tile.extent % 16u) % 16u);
    partials[tile.target_index + lane * tile.target_stride] = memory_form(partial);
}

// Reduces a column, sixteen rows at a time, with their loads in flight together.
fn partial_of(tile: ColumnTile, lane: u32) -> Partial {
    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    var tally = ColumnTally();
    for (var row = 0u; row < tile.extent; row += 16u) {
        let a = rows_at(tile, lane, row);
        let b = rows_at(tile, lane, row + 4u);
        let c = rows_at(tile, lane, row + 8u);
        let d = rows_at(tile, lane, row + 12u);
        sum0 = accumulate(sum0, a);
        sum1 = accumulate(sum1, b);
        sum2 = accumulate(sum2, c);
        sum3 = accumulate(sum3, d);
        tally = tally_rows(tally_rows(tally_rows(tally_rows(tally, a), b), c), d);
    }
    let largest = max(max(tally.largest.x, tally.largest.y), max(tally.largest.z, tally.largest.w));
    let counts = Counts(sum_of_lanes(tally.zeros), sum_of_lanes(tally.non_finite));
    return new_partial(total_of_four(sum0, sum1, sum2, sum3), largest, counts);
}

// Adds up the scaled elements of a column, in the same order as `partial_of`.
fn scaled_sum_of(tile: ColumnTile, lane: u32, exponent: i32) -> f32 {
    var total = vec4<f32>();
    for (var number = 0u; number < 4u; number += 1u) {
        var sum = vec4<f32>();
        for (var row = 4u * number; row < tile.extent; row += 16u) {
            sum = accumulate_scaled(sum, rows_at(tile, lane, row), exponent);
        }
        total += sum;
    }
    return total_of(total);
}

// Returns the f32 bits of four rows of a column; zeros past the last row. The loads are unconditional, so that there is no branch
// between them.
fn rows_at(tile: ColumnTile, lane: u32, row: u32) -> vec4<u32> {
    let rows = vec4(row) + vec4(0u, 1u, 2u, 3u);
    let elements = tile.first + min(rows, vec4(tile.extent - 1u)) * tile.columns + lane;
    let words = load_words(tile.slot, elements / ELEMENTS_PER_WORD);
    let halves = elements % ELEMENTS_PER_WORD;
    let bits = vec4(
        widen_element(words.x, halves.x),
        widen_element(words.y, halves.y),
        widen_element(words.z, halves.z),
        widen_element(words.w, halves.w),
    );
    return select(vec4(0u), bits, rows < vec4(tile.extent));
}

// The largest magnitude and the counts of one invocation, for each of four lanes. The counts are unused unless COUNTED.
struct ColumnTally {
    largest: vec4<u32>,
    zeros: vec4<u32>,
    non_finite: vec4<u32>,
}

fn tally_rows(tally: ColumnTally, bits: vec4<u32>) -> ColumnTally {
    let magnitudes = bits & vec4(MAGNITUDE);
    var next = tally;
    next.largest = max(tally.largest, magnitudes);
    if (COUNTED) {
        next.zeros += select(vec4(0u), vec4(1u), magnitudes == vec4(0u));
        next.non_finite += select(vec4(0u), vec4(1u), magnitudes >= vec4(INFINITY));
    }
    return next;
}

fn sum_of_lanes(count: vec4<u32>) -> u32 {
    return (count.x + count.y) + (count.z + count.w);
}

// Additions are in statements of their own: OpenGL drivers may rearrange those of one expression.
fn total_of(sum: vec4<f32>) -> f32 {
    var first = sum.x + sum.y;
    var second = sum.z + sum.w;
    return first + second;
}

// Adds one sum after the other.
fn total_of_four(sum0: vec4<f32>, sum1: vec4<f32>, sum2: vec4<f32>, sum3: vec4<f32>) -> f32 {
    var total = sum0;
    total += sum1;
    total += sum2;
    total += sum3;
    return total_of(total);
}
