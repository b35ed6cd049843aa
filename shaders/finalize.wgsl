// Norm, stage 2: the partials of each segment joined to its norm, and what is to be left of that.
//
// One workgroup a segment. Needs a norm, partials, `leave` of a record or of statistics.

@group(0) @binding(0) var<storage, read> partials: array<Partial>;

struct Item {
    partial: Partial,
    first_non_finite: u32, // the first partial that is not finite, or NO_PARTIAL
}

fn join(a: Item, b: Item) -> Item {
    return Item(combine(a.partial, b.partial), min(a.first_non_finite, b.first_non_finite));
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
    let total = reduce(lane, plain_total(segment, lane));
    let largest = total.partial.largest & MAGNITUDE;
    let rescue = (total.partial.largest & RESCUED) != 0u;
    let exponent = select(0, exponent_of(largest), rescue);

    var sum = total.partial.sum;
    // Uniform: `reduce` gives every invocation the same.
    if (rescue) {
        var rescued = Item(Partial(), NO_PARTIAL);
        rescued.partial.sum = rescued_total(segment, lane, exponent);
        sum = reduce(lane, rescued).partial.sum;
    }
    if (lane == 0u) {
        leave(index, found(sum, exponent, largest), largest, total.first_non_finite, counts_of(total.partial));
    }
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

// The partials that one invocation joins, but for the sums of the rescued ones: their scale is not known yet. Four
// at a time, their loads in flight together: this stage does nothing but wait for them.
fn plain_total(segment: Segment, lane: u32) -> Item {
    var cascade = Cascade();
    var all = Partial();
    var first_non_finite = NO_PARTIAL;
    var index = 0u;
    for (var at = lane; at < segment.count; at += 4u * WORKGROUP_SIZE) {
        let a = partial_at(segment, at);
        let b = partial_at(segment, at + WORKGROUP_SIZE);
        let c = partial_at(segment, at + 2u * WORKGROUP_SIZE);
        let d = partial_at(segment, at + 3u * WORKGROUP_SIZE);
        let four = combine(combine(a, b), combine(c, d));
        if (first_non_finite == NO_PARTIAL && (four.largest & MAGNITUDE) >= INFINITY) {
            first_non_finite = segment.first + first_of(at, a.largest, b.largest, c.largest);
        }
        add(&cascade, index, (plain_sum(a) + plain_sum(b)) + (plain_sum(c) + plain_sum(d)));
        all = combine(all, four);
        index += 1u;
    }
    all.sum = total_of(cascade);
    return Item(all, first_non_finite);
}

// Which of four partials from `at` is the first that is not finite, if one is.
fn first_of(at: u32, a: u32, b: u32, c: u32) -> u32 {
    let not_finite = vec3((a & MAGNITUDE) >= INFINITY, (b & MAGNITUDE) >= INFINITY, (c & MAGNITUDE) >= INFINITY);
    let steps = select(select(select(3u, 2u, not_finite.z), 1u, not_finite.y), 0u, not_finite.x);
    return at + steps * WORKGROUP_SIZE;
}

// All the partials of one invocation, as if the elements had been divided by 2^exponent, which is about the largest.
fn rescued_total(segment: Segment, lane: u32, exponent: i32) -> f32 {
    var cascade = Cascade();
    var index = 0u;
    for (var at = lane; at < segment.count; at += WORKGROUP_SIZE) {
        let partial = partials[segment.first + at];
        let own = select(0, exponent_of(partial.largest & MAGNITUDE), (partial.largest & RESCUED) != 0u);
        add(&cascade, index, rescaled(partial.sum, power_of_two(clamp(own - exponent, -126, 127))));
        index += 1u;
    }
    return total_of(cascade);
}

fn partial_at(segment: Segment, at: u32) -> Partial {
    if (at < segment.count) {
        return partials[segment.first + at];
    }
    return Partial();
}

fn plain_sum(partial: Partial) -> f32 {
    return select(partial.sum, 0.0, (partial.largest & RESCUED) != 0u);
}
