// Accumulates vectors of elements in one invocation: sums of the norm's terms, and the tally of magnitudes and counts.
//
// provides: add_vector, add_scaled_vector, total_of, total_of_four, Tally, tally_vector, magnitude_of_tally, counts_of_tally
// requires: elements, norms, partials, counts

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

fn magnitude_of_tally(tally: Tally) -> u32 {
    let key = max(max(tally.largest_key.x, tally.largest_key.y), max(tally.largest_key.z, tally.largest_key.w));
    return magnitude_of_key(key);
}

fn counts_of_tally(tally: Tally) -> Counts {
    return Counts(sum_of_lanes(tally.zeros), sum_of_lanes(tally.non_finite));
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
