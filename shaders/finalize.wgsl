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
    var total = reduce(lane, total_in(segment, lane, 0));
    let largest = total.partial.largest & MAGNITUDE;
    var exponent = 0;
    // Uniform: `reduce` gives every invocation the same.
    if ((total.partial.largest & RESCUED) != 0u) {
        exponent = exponent_of(largest);
        total = reduce(lane, total_in(segment, lane, exponent));
    }
    if (lane == 0u) {
        let norm = found(total.partial.sum, exponent, largest);
        leave(index, norm, largest, total.first_non_finite, counts_of(total.partial));
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

// The partials that one invocation joins, their sums as if all elements had been divided by 2^exponent. Without a
// rescued one among them that is 0; with one, the sum for 0 means nothing, but says what the exponent is to be. Sixteen at
// a time, their loads in flight together: this stage does nothing but wait for them.
fn total_in(segment: Segment, lane: u32, exponent: i32) -> Item {
    var cascade = Cascade();
    var all = Item(Partial(), NO_PARTIAL);
    var index = 0u;
    for (var at = lane; at < segment.count; at += 16u * WORKGROUP_SIZE) {
        let a = four_from(segment, at, exponent);
        let b = four_from(segment, at + 4u * WORKGROUP_SIZE, exponent);
        let c = four_from(segment, at + 8u * WORKGROUP_SIZE, exponent);
        let d = four_from(segment, at + 12u * WORKGROUP_SIZE, exponent);
        let sixteen = join(join(a, b), join(c, d));
        add(&cascade, index, sixteen.partial.sum);
        all = join(all, sixteen);
        index += 1u;
    }
    all.partial.sum = total_of(cascade);
    return all;
}

fn four_from(segment: Segment, at: u32, exponent: i32) -> Item {
    let a = item_at(segment, at, exponent);
    let b = item_at(segment, at + WORKGROUP_SIZE, exponent);
    let c = item_at(segment, at + 2u * WORKGROUP_SIZE, exponent);
    let d = item_at(segment, at + 3u * WORKGROUP_SIZE, exponent);
    return join(join(a, b), join(c, d));
}

// One partial; nothing past the end of the segment. It is loaded in any case, so that no branch stands between loads.
fn item_at(segment: Segment, at: u32, exponent: i32) -> Item {
    let index = segment.first + min(at, segment.count - 1u);
    let loaded = partials[index];
    var partial = kept_if(at < segment.count, loaded);
    let largest = partial.largest & MAGNITUDE;
    let own_exponent = select(0, exponent_of(largest), (partial.largest & RESCUED) != 0u);
    partial.sum = rescaled(partial.sum, power_of_two(clamp(own_exponent - exponent, -126, 127)));
    return Item(partial, select(NO_PARTIAL, index, largest >= INFINITY));
}
