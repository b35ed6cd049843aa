// The norm of a segment, from its partials.
//
// A workgroup has COLUMNS invocations or a multiple of that. This code is latency-bound, and instruction fetches are part of the
// latency, so its common path is short. Scaled and non-finite partials are read a second time, by code that other segments do not
// fetch.
//
// provides: finalize_segment
// requires: banks, segment, partials, norms, reduce, outputs, float_bits, extended
// binds: segments
// constants: WORKGROUP_SIZE, TURNS

// The number of columns in which the partials of a segment are summed. The order of additions does not depend on the workgroup
// size.
const COLUMNS: u32 = 256u;

// Reduces the partials of a segment to its norm, and writes its output. All invocations must call it.
fn finalize_segment(index: u32, lane: u32) {
    let segment = segments[index];
    let unscaled = reduce_first(COLUMNS, lane, reduce_column(segment, lane, false, 0));
    var sum = unscaled.sum;
    var exponent = 0;
    var largest = unscaled.largest;
    var first_non_finite = NO_PARTIAL;
    // Uniform: `reduce_first` returns the same to every invocation. SCALED is above infinity, and MISSING above all.
    if (largest == MISSING) {
        let first = MAGNITUDE - max_of_workgroup(lane, MAGNITUDE - first_in(segment, lane, MISSING, MISSING));
        if (lane == 0u) {
            write_missing(index, first);
        }
        reset_partials(segment, lane);
        return;
    }
    if (largest >= INFINITY) {
        largest = max_of_workgroup(lane, largest_in(segment, lane));
        if (largest >= INFINITY) {
            // The maximum of MAGNITUDE - index yields the smallest index.
            let first = first_in(segment, lane, MAGNITUDE, INFINITY);
            first_non_finite = MAGNITUDE - max_of_workgroup(lane, MAGNITUDE - first);
        } else {
            exponent = exponent_of(largest);
            sum = reduce_first(COLUMNS, lane, reduce_column(segment, lane, true, exponent)).sum;
        }
    }
    if (lane == 0u) {
        let norm = without_loss_scale(norm_of_all(sum, exponent, largest));
        let magnitude = magnitude_without_loss_scale(largest);
        write_output(index, segment, norm, magnitude, first_non_finite, counts_of(unscaled));
    }
    reset_partials(segment, lane);
}

fn max_of_workgroup(lane: u32, value: u32) -> u32 {
    var partial = Partial();
    partial.largest = value;
    return reduce(lane, partial).largest;
}

fn norm_of_all(sum: f32, exponent: i32, largest: u32) -> Extended {
    if (largest > INFINITY) {
        return Extended(NAN, 0);
    }
    if (largest == 0u || largest == INFINITY) {
        return Extended(largest, 0);
    }
    return norm_of(sum, exponent, largest);
}

// A sum of many terms in chains of 16: sums of 16 terms, sums of 16 such sums, and the sum of those.
struct Cascade {
    ones: f32,
    sixteens: f32,
    rest: f32,
}

// Adds term number `index`.
fn add(cascade: ptr<function, Cascade>, index: u32, term: f32) {
    (*cascade).ones += term;
    if ((index & 15u) == 15u) {
        (*cascade).sixteens += (*cascade).ones;
        (*cascade).ones = 0.0;
    }
    if ((index & 255u) == 255u) {
        (*cascade).rest += (*cascade).sixteens;
        (*cascade).sixteens = 0.0;
    }
}

fn total_of_cascade(cascade: Cascade) -> f32 {
    var total = cascade.sixteens + cascade.ones;
    total += cascade.rest;
    return total;
}

// The partials of a segment form a table with COLUMNS columns. Each column is summed row by row, sixteen rows at a time, and a
// tree joins the columns. In a wide workgroup, TURNS invocations share a column: each takes sixteen rows in turn, and the first
// of them adds up their sums in the order of the rows.

// Reduces the partials of one column. If `is_scaled`, sums are taken as if all elements had been divided by 2^exponent. The result
// is valid in lanes below COLUMNS only.
fn reduce_column(segment: Segment, lane: u32, is_scaled: bool, exponent: i32) -> Partial {
    let rows = (segment.count + COLUMNS - 1u) / COLUMNS;
    var cascade = Cascade();
    var all = Partial();
    for (var row = 0u; row < rows; row += 16u * TURNS) {
        let sixteen = reduce_sixteen(segment, lane % COLUMNS, row + 16u * (lane / COLUMNS), is_scaled, exponent);
        if (TURNS == 1u) {
            add(&cascade, row / 16u, sixteen.sum);
            all = combine(all, sixteen);
            continue;
        }
        sh_partials[lane] = sixteen;
        workgroupBarrier();
        if (lane < COLUMNS) {
            for (var turn = 0u; turn < TURNS; turn += 1u) {
                let partial = sh_partials[turn * COLUMNS + lane];
                add(&cascade, row / 16u + turn, partial.sum);
                all = combine(all, partial);
            }
        }
        workgroupBarrier();
    }
    all.sum = total_of_cascade(cascade);
    return all;
}

// Reduces sixteen rows of a column by a tree, up to the end of the segment, with four loads in flight at a time. These are
// loops, because unrolled code would take longer to fetch than the partials.
fn reduce_sixteen(segment: Segment, column: u32, first: u32, is_scaled: bool, exponent: i32) -> Partial {
    var sixteen = Partial();
    for (var row = first; row < first + 16u && row * COLUMNS < segment.count; row += 8u) {
        var eight = Partial();
        for (var half = row; half < row + 8u; half += 4u) {
            eight = combine(eight, reduce_four(segment, half * COLUMNS + column, is_scaled, exponent));
        }
        sixteen = combine(sixteen, eight);
    }
    return sixteen;
}

fn reduce_four(segment: Segment, at: u32, is_scaled: bool, exponent: i32) -> Partial {
    let a = load_partial(segment, at, is_scaled, exponent);
    let b = load_partial(segment, at + COLUMNS, is_scaled, exponent);
    let c = load_partial(segment, at + 2u * COLUMNS, is_scaled, exponent);
    let d = load_partial(segment, at + 3u * COLUMNS, is_scaled, exponent);
    return combine(combine(a, b), combine(c, d));
}

// Loads one partial; past the end of the segment, the partial of no elements. The load is unconditional, so that there is no branch between loads.
fn load_partial(segment: Segment, at: u32, is_scaled: bool, exponent: i32) -> Partial {
    let loaded = partial_at(segment.first + min(at, segment.count - 1u));
    var partial = select_partial(at < segment.count, loaded);
    if (is_scaled) {
        let partial_exponent = select(0, exponent_of(partial.largest & MAGNITUDE), partial.largest >= SCALED);
        partial.sum = rescale_sum(partial.sum, power_of_two(clamp(partial_exponent - exponent, -126, 127)));
    }
    return partial;
}

// Returns the largest magnitude among the partials of one invocation.
fn largest_in(segment: Segment, lane: u32) -> u32 {
    var largest = 0u;
    for (var at = lane; at < segment.count; at += WORKGROUP_SIZE) {
        largest = max(largest, partial_at(segment.first + at).largest & MAGNITUDE);
    }
    return largest;
}

// Returns the index of the first partial of one invocation whose `largest & mask` is at least `least`, or MAGNITUDE.
fn first_in(segment: Segment, lane: u32, mask: u32, least: u32) -> u32 {
    for (var at = lane; at < segment.count; at += WORKGROUP_SIZE) {
        if ((partial_at(segment.first + at).largest & mask) >= least) {
            return segment.first + at;
        }
    }
    return MAGNITUDE;
}
