// Norm, stage 2: the partials of each segment joined to its norm, and what is to be left of that.
//
// One workgroup a segment, of COLUMNS invocations or a multiple of that. This stage is latency-bound, instruction fetches
// included, so its common path is short. Rescued and non-finite partials take a second read, in code that is otherwise not
// fetched.
//
// Needs a norm, partials, `leave` of a record or of statistics.

// How many sums the partials of a segment are added up in. The order of additions does not depend on the workgroup size.
const COLUMNS: u32 = 256u;

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
    let index = workgroup.y * grid.x + workgroup.x;
    if (index >= arrayLength(&segments)) {
        return;
    }
    let segment = segments[index];
    let plain = reduce_first(COLUMNS, lane, total_in(segment, lane, false, 0));
    var sum = plain.sum;
    var exponent = 0;
    var largest = plain.largest;
    var first_non_finite = NO_PARTIAL;
    // Uniform: `reduce_first` gives every invocation the same. RESCUED is above infinity.
    if (plain.largest >= INFINITY) {
        largest = reduce(lane, with_largest(largest_in(segment, lane))).largest;
        if (largest >= INFINITY) {
            // A maximum over MAGNITUDE - index yields the smallest index.
            first_non_finite = MAGNITUDE - reduce(lane, with_largest(MAGNITUDE - first_non_finite_in(segment, lane))).largest;
        } else {
            exponent = exponent_of(largest);
            sum = reduce_first(COLUMNS, lane, total_in(segment, lane, true, exponent)).sum;
        }
    }
    if (lane == 0u) {
        leave(index, segment, found(sum, exponent, largest), largest, first_non_finite, counts_of(plain));
    }
}

fn with_largest(largest: u32) -> Partial {
    var partial: Partial;
    partial.largest = largest;
    return partial;
}

fn found(sum: f32, exponent: i32, largest: u32) -> Found {
    if (largest > INFINITY) {
        return special(NAN);
    }
    if (largest == 0u || largest == INFINITY) {
        return special(largest);
    }
    return norm_of(sum, exponent, largest);
}

// A sum of very many terms in chains of 16: sums of 16, sums of 16 such sums, and so on.
struct Cascade {
    ones: f32,
    sixteens: f32,
    rest: f32,
}

// Adds the term of number `index`.
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

fn total_of(cascade: Cascade) -> f32 {
    return cascade.rest + (cascade.sixteens + cascade.ones);
}

// The partials of a segment are the items of a table with COLUMNS columns, in rows. Each column is summed up by itself, row by
// row, sixteen rows at a time; a tree joins the columns. A wide workgroup has several invocations for a column: they take turns
// at sixteen rows, and the first of them adds up what they have found, in the same order.
override TURNS: u32 = WORKGROUP_SIZE / COLUMNS;

// The partials of one column: as they are, or with their sums as if all elements had been divided by 2^exponent. Valid in
// lanes below COLUMNS only.
fn total_in(segment: Segment, lane: u32, is_scaled: bool, exponent: i32) -> Partial {
    let rows = (segment.count + COLUMNS - 1u) / COLUMNS;
    var cascade = Cascade();
    var all: Partial;
    for (var row = 0u; row < rows; row += 16u * TURNS) {
        let sixteen = sixteen_from(segment, lane % COLUMNS, row + 16u * (lane / COLUMNS), is_scaled, exponent);
        if (TURNS == 1u) {
            add(&cascade, row / 16u, sixteen.sum);
            all = combine(all, sixteen);
            continue;
        }
        sh_items[lane] = sixteen;
        workgroupBarrier();
        if (lane < COLUMNS) {
            for (var turn = 0u; turn < TURNS; turn += 1u) {
                let item = sh_items[turn * COLUMNS + lane];
                add(&cascade, row / 16u + turn, item.sum);
                all = combine(all, item);
            }
        }
        workgroupBarrier();
    }
    all.sum = total_of(cascade);
    return all;
}

// Sixteen rows of a column, joined by a tree, up to the end of the segment. Four loads are in flight at a time. These are
// loops, since with cold caches this stage waits for its instructions longer than for partials.
fn sixteen_from(segment: Segment, column: u32, first: u32, is_scaled: bool, exponent: i32) -> Partial {
    var sixteen: Partial;
    for (var row = first; row < first + 16u && row * COLUMNS < segment.count; row += 8u) {
        var eight: Partial;
        for (var half = row; half < row + 8u; half += 4u) {
            eight = combine(eight, four_from(segment, half * COLUMNS + column, is_scaled, exponent));
        }
        sixteen = combine(sixteen, eight);
    }
    return sixteen;
}

fn four_from(segment: Segment, at: u32, is_scaled: bool, exponent: i32) -> Partial {
    let a = partial_in(segment, at, is_scaled, exponent);
    let b = partial_in(segment, at + COLUMNS, is_scaled, exponent);
    let c = partial_in(segment, at + 2u * COLUMNS, is_scaled, exponent);
    let d = partial_in(segment, at + 3u * COLUMNS, is_scaled, exponent);
    return combine(combine(a, b), combine(c, d));
}

// One partial; nothing past the end of the segment. It is loaded in any case, so that no branch stands between loads.
fn partial_in(segment: Segment, at: u32, is_scaled: bool, exponent: i32) -> Partial {
    let loaded = partial_at(segment.first + min(at, segment.count - 1u));
    var partial = kept_if(at < segment.count, loaded);
    if (is_scaled) {
        let own_exponent = select(0, exponent_of(partial.largest & MAGNITUDE), partial.largest >= RESCUED);
        partial.sum = rescaled(partial.sum, power_of_two(clamp(own_exponent - exponent, -126, 127)));
    }
    return partial;
}

// The largest magnitude among the partials of one invocation.
fn largest_in(segment: Segment, lane: u32) -> u32 {
    var largest = 0u;
    for (var at = lane; at < segment.count; at += WORKGROUP_SIZE) {
        largest = max(largest, partial_at(segment.first + at).largest & MAGNITUDE);
    }
    return largest;
}

// The first of them that is not finite, or MAGNITUDE.
fn first_non_finite_in(segment: Segment, lane: u32) -> u32 {
    for (var at = lane; at < segment.count; at += WORKGROUP_SIZE) {
        if ((partial_at(segment.first + at).largest & MAGNITUDE) >= INFINITY) {
            return segment.first + at;
        }
    }
    return MAGNITUDE;
}
