// Code of `kernels::Producer`, and the elements of its runs. A test of the crate in producers.rs checks this copy.
export const producers = {
  f32: { elements: 4096, partialBytes: 8, wgsl: `
const gradclip_WORKGROUP_SIZE: u32 = 256u;
const gradclip_VECTORS: u32 = 4u;
const gradclip_STRIDE: u32 = gradclip_ELEMENTS_PER_VECTOR * gradclip_WORKGROUP_SIZE;

fn gradclip_partial_of_run(lane: u32, count: u32, vectors: array<vec4<u32>, gradclip_VECTORS>) -> gradclip_Partial {
    var held = vectors;
    let in_blocks = 4u * (count / (4u * gradclip_STRIDE));
    var sums = array<vec4<f32>, 4>();
    var tally = gradclip_Tally();
    for (var k = 0u; k < gradclip_VECTORS; k += 1u) {
        if (gradclip_ELEMENTS_PER_VECTOR * lane + k * gradclip_STRIDE < count) {
            let number = select(0u, k % 4u, k < in_blocks);
            sums[number] = gradclip_add_vector(sums[number], held[k]);
            tally = gradclip_tally_vector(tally, held[k]);
        }
    }
    let sum = gradclip_total_of_four(sums[0], sums[1], sums[2], sums[3]);
    var partial = gradclip_reduce(lane, gradclip_new_partial(sum, gradclip_magnitude_of_tally(tally), gradclip_counts_of_tally(tally)));
    if (gradclip_needs_scaling(partial.largest)) {
        let exponent = gradclip_exponent_of(partial.largest);
        var scaled = array<vec4<f32>, 4>();
        for (var k = 0u; k < gradclip_VECTORS; k += 1u) {
            if (gradclip_ELEMENTS_PER_VECTOR * lane + k * gradclip_STRIDE < count) {
                let number = select(0u, k % 4u, k < in_blocks);
                scaled[number] = gradclip_add_scaled_vector(scaled[number], held[k], exponent);
            }
        }
        let total = gradclip_total_of_four(scaled[0], scaled[1], scaled[2], scaled[3]);
        partial.sum = gradclip_reduce(lane, gradclip_new_partial(total, 0u, gradclip_Counts())).sum;
        partial.largest |= gradclip_SCALED;
    }
    let padding = (gradclip_ELEMENTS_PER_VECTOR - count % gradclip_ELEMENTS_PER_VECTOR) % gradclip_ELEMENTS_PER_VECTOR;
    return gradclip_memory_form(gradclip_without_padding(partial, padding));
}

const gradclip_ELEMENTS_PER_WORD: u32 = 1u;
const gradclip_ELEMENTS_PER_VECTOR: u32 = 4u;
const gradclip_PREFETCH: bool = true;
const gradclip_KEY_MASK: u32 = gradclip_MAGNITUDE;
const gradclip_INFINITY_KEY: u32 = gradclip_INFINITY;

fn gradclip_magnitude_of_key(key: u32) -> u32 {
    return key;
}

fn gradclip_widen_even(words: vec4<u32>) -> vec4<u32> {
    return words;
}

fn gradclip_widen_odd(words: vec4<u32>) -> vec4<u32> {
    return vec4<u32>();
}

fn gradclip_widen_even_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return words;
}

fn gradclip_widen_odd_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return vec4<u32>();
}

fn gradclip_widen_even_finite(words: vec4<u32>) -> vec4<u32> {
    return words;
}

fn gradclip_widen_odd_finite(words: vec4<u32>) -> vec4<u32> {
    return vec4<u32>();
}

fn gradclip_with_signs(magnitudes: vec4<u32>, words: vec4<u32>) -> vec4<u32> {
    return magnitudes;
}

fn gradclip_widen_element(word: u32, index: u32) -> u32 {
    return word;
}

fn gradclip_narrow(bits: vec4<u32>) -> vec4<u32> {
    return bits;
}

struct gradclip_Partial {
    sum: f32,     // of the norm's terms; of the scaled elements if gradclip_SCALED is set
    largest: u32, // the largest magnitude, as bits; gradclip_SCALED is its sign bit
}

const gradclip_COUNTED: bool = false;
const gradclip_SCALED: u32 = gradclip_SIGN;
const gradclip_MISSING: u32 = 0xffffffffu;

fn gradclip_combine(a: gradclip_Partial, b: gradclip_Partial) -> gradclip_Partial {
    return gradclip_Partial(a.sum + b.sum, max(a.largest, b.largest));
}

fn gradclip_new_partial(sum: f32, largest: u32, counts: gradclip_Counts) -> gradclip_Partial {
    return gradclip_Partial(sum, largest);
}

fn gradclip_select_partial(condition: bool, partial: gradclip_Partial) -> gradclip_Partial {
    return gradclip_Partial(select(0.0, partial.sum, condition), select(0u, partial.largest, condition));
}

fn gradclip_counts_of(partial: gradclip_Partial) -> gradclip_Counts {
    return gradclip_Counts();
}

fn gradclip_without_padding(partial: gradclip_Partial, padding: u32) -> gradclip_Partial {
    return partial;
}

fn gradclip_memory_form(partial: gradclip_Partial) -> gradclip_Partial {
    return gradclip_Partial(partial.sum, ~partial.largest);
}

const gradclip_SMALLEST_UNSCALED: u32 = 0x2b800000u;
const gradclip_LARGEST_UNSCALED: u32 = 0x56000000u;

fn gradclip_needs_scaling(largest: u32) -> bool {
    let is_in_range = largest == 0u || (largest >= gradclip_SMALLEST_UNSCALED && largest <= gradclip_LARGEST_UNSCALED);
    return !is_in_range && largest < gradclip_INFINITY;
}

fn gradclip_accumulate(sum: vec4<f32>, bits: vec4<u32>) -> vec4<f32> {
    let g = bitcast<vec4<f32>>(bits);
    return fma(g, g, sum);
}

fn gradclip_accumulate_scaled(sum: vec4<f32>, bits: vec4<u32>, exponent: i32) -> vec4<f32> {
    let g = gradclip_scale_down_all(bits, exponent);
    return fma(g, g, sum);
}

const gradclip_LARGEST_SCALE: f32 = 9223372036854775808.0; // 2^63

fn gradclip_rescale_sum(sum: f32, scale: f32) -> f32 {
    let bounded = min(scale, gradclip_LARGEST_SCALE);
    return sum * bounded * bounded;
}

fn gradclip_norm_of(sum: f32, exponent: i32, largest: u32) -> gradclip_Extended {
    return gradclip_normalized(gradclip_square_root(sum), exponent);
}

var<workgroup> gradclip_sh_partials: array<gradclip_Partial, gradclip_WORKGROUP_SIZE>;

fn gradclip_reduce(lane: u32, partial: gradclip_Partial) -> gradclip_Partial {
    return gradclip_reduce_first(gradclip_WORKGROUP_SIZE, lane, partial);
}

fn gradclip_reduce_first(count: u32, lane: u32, partial: gradclip_Partial) -> gradclip_Partial {
    if (lane < count) {
        gradclip_sh_partials[lane] = partial;
    }
    for (var width = count / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if (lane < width) {
            gradclip_sh_partials[lane] = gradclip_combine(gradclip_sh_partials[lane], gradclip_sh_partials[lane + width]);
        }
    }
    return workgroupUniformLoad(&gradclip_sh_partials[0]);
}

fn gradclip_add_vector(sum: vec4<f32>, words: vec4<u32>) -> vec4<f32> {
    let even = gradclip_accumulate(sum, gradclip_widen_even_finite(words));
    if (gradclip_ELEMENTS_PER_WORD == 1u) {
        return even;
    }
    return gradclip_accumulate(even, gradclip_widen_odd_finite(words));
}

fn gradclip_add_scaled_vector(sum: vec4<f32>, words: vec4<u32>, exponent: i32) -> vec4<f32> {
    let even = gradclip_accumulate_scaled(sum, gradclip_widen_even(words), exponent);
    if (gradclip_ELEMENTS_PER_WORD == 1u) {
        return even;
    }
    return gradclip_accumulate_scaled(even, gradclip_widen_odd(words), exponent);
}

struct gradclip_Tally {
    largest_key: vec4<u32>,
    zeros: vec4<u32>,
    non_finite: vec4<u32>,
}

fn gradclip_tally_vector(tally: gradclip_Tally, words: vec4<u32>) -> gradclip_Tally {
    if (gradclip_ELEMENTS_PER_WORD == 1u) {
        return gradclip_tally_upper(tally, words);
    }
    return gradclip_tally_upper(gradclip_tally_upper(tally, words << vec4(16u)), words);
}

fn gradclip_tally_upper(tally: gradclip_Tally, words: vec4<u32>) -> gradclip_Tally {
    let keys = words & vec4(gradclip_KEY_MASK);
    var next = tally;
    next.largest_key = max(tally.largest_key, keys);
    if (gradclip_COUNTED) {
        next.zeros += select(vec4(0u), vec4(1u), keys == vec4(0u));
        next.non_finite += select(vec4(0u), vec4(1u), keys >= vec4(gradclip_INFINITY_KEY));
    }
    return next;
}

fn gradclip_magnitude_of_tally(tally: gradclip_Tally) -> u32 {
    let key = max(max(tally.largest_key.x, tally.largest_key.y), max(tally.largest_key.z, tally.largest_key.w));
    return gradclip_magnitude_of_key(key);
}

fn gradclip_counts_of_tally(tally: gradclip_Tally) -> gradclip_Counts {
    return gradclip_Counts(gradclip_sum_of_lanes(tally.zeros), gradclip_sum_of_lanes(tally.non_finite));
}

fn gradclip_sum_of_lanes(count: vec4<u32>) -> u32 {
    return (count.x + count.y) + (count.z + count.w);
}

fn gradclip_total_of(sum: vec4<f32>) -> f32 {
    var first = sum.x + sum.y;
    var second = sum.z + sum.w;
    return first + second;
}

fn gradclip_total_of_four(sum0: vec4<f32>, sum1: vec4<f32>, sum2: vec4<f32>, sum3: vec4<f32>) -> f32 {
    var total = sum0;
    total += sum1;
    total += sum2;
    total += sum3;
    return gradclip_total_of(total);
}

const gradclip_SIGN: u32 = 0x80000000u;
const gradclip_MAGNITUDE: u32 = 0x7fffffffu;
const gradclip_INFINITY: u32 = 0x7f800000u; // a magnitude above it is a NaN
const gradclip_NAN: u32 = 0x7fc00000u;
const gradclip_ONE: u32 = 0x3f800000u;
const gradclip_SMALLEST_NORMAL: u32 = 0x00800000u;

fn gradclip_exponent_of(magnitude: u32) -> i32 {
    let field = i32(magnitude >> 23u);
    return select(i32(firstLeadingBit(magnitude)) - 149, field - 127, field != 0);
}

fn gradclip_power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

fn gradclip_scale_down(magnitude: u32, exponent: i32) -> f32 {
    let field = magnitude >> 23u;
    let significand = (magnitude & 0x7fffffu) | select(0u, 0x800000u, field != 0u);
    let power = max(i32(field), 1) - 150 - exponent;
    return select(0.0, f32(significand) * gradclip_power_of_two(max(power, -100)), power > -100);
}

fn gradclip_scale_down_all(bits: vec4<u32>, exponent: i32) -> vec4<f32> {
    let m = bits & vec4(gradclip_MAGNITUDE);
    return vec4(
        gradclip_scale_down(m.x, exponent),
        gradclip_scale_down(m.y, exponent),
        gradclip_scale_down(m.z, exponent),
        gradclip_scale_down(m.w, exponent),
    );
}

fn gradclip_scale_up(value: f32, exponent: i32) -> u32 {
    let bits = bitcast<u32>(value);
    let field = i32(bits >> 23u) + exponent;
    if (field >= 255) {
        return gradclip_INFINITY;
    }
    if (field > 0) {
        return (bits & 0x7fffffu) | (u32(field) << 23u);
    }
    let significand = (bits & 0x7fffffu) | 0x800000u;
    let drop = u32(1 - field);
    if (drop > 24u) {
        return 0u;
    }
    let kept = significand >> drop;
    let rest = significand & ((1u << drop) - 1u);
    let half = 1u << (drop - 1u);
    return kept + select(0u, 1u, rest > half || (rest == half && (kept & 1u) == 1u));
}

struct gradclip_Counts {
    zeros: u32,
    non_finite: u32,
}

fn gradclip_add_counts(a: gradclip_Counts, b: gradclip_Counts) -> gradclip_Counts {
    return gradclip_Counts(a.zeros + min(b.zeros, ~a.zeros), a.non_finite + min(b.non_finite, ~a.non_finite));
}

const gradclip_MAX_CORRECTIONS: u32 = 16u;

fn gradclip_square_root(value: f32) -> f32 {
    let bits = bitcast<u32>(value);
    let exponent = i32(bits >> 23u) - 127;
    let odd = exponent & 1;
    let radicand = ((bits & 0x7fffffu) | 0x800000u) << u32(odd);
    var root = u32(sqrt(f32(radicand) * gradclip_power_of_two(-23)) * gradclip_power_of_two(23));
    var remainder = i32((radicand << 23u) - root * root);
    for (var step = 0u; step < gradclip_MAX_CORRECTIONS; step += 1u) {
        if (remainder > i32(root)) {
            remainder -= i32(2u * root + 1u);
            root += 1u;
        } else if (remainder <= -i32(root)) {
            remainder += i32(2u * root - 1u);
            root -= 1u;
        } else {
            break;
        }
    }
    return f32(root) * gradclip_power_of_two((exponent - odd) / 2 - 23);
}

fn gradclip_reciprocal(value: f32) -> f32 {
    let divisor = i32((bitcast<u32>(value) & 0x7fffffu) | 0x800000u);
    var quotient = u32(gradclip_power_of_two(24) / value);
    var remainder = -i32(quotient * u32(divisor));
    for (var step = 0u; step < gradclip_MAX_CORRECTIONS; step += 1u) {
        if (2 * remainder > divisor) {
            remainder -= divisor;
            quotient += 1u;
        } else if (2 * remainder < -divisor) {
            remainder += divisor;
            quotient -= 1u;
        } else {
            break;
        }
    }
    return f32(quotient) * gradclip_power_of_two(-24);
}

struct gradclip_Extended {
    significand: u32,
    exponent: i32,
}

fn gradclip_extended(bits: u32) -> gradclip_Extended {
    let magnitude = bits & gradclip_MAGNITUDE;
    if (magnitude == 0u || magnitude >= gradclip_INFINITY) {
        return gradclip_Extended(bits, 0);
    }
    if (magnitude >= gradclip_SMALLEST_NORMAL) {
        return gradclip_Extended((bits & gradclip_SIGN) | (magnitude & 0x7fffffu) | gradclip_ONE, i32(magnitude >> 23u) - 127);
    }
    let exponent = gradclip_exponent_of(magnitude);
    return gradclip_Extended((bits & gradclip_SIGN) | bitcast<u32>(gradclip_scale_down(magnitude, exponent)), exponent);
}

fn gradclip_normalized(value: f32, exponent: i32) -> gradclip_Extended {
    let bits = bitcast<u32>(value);
    return gradclip_Extended((bits & 0x7fffffu) | gradclip_ONE, exponent + i32(bits >> 23u) - 127);
}

fn gradclip_extended_product(a: gradclip_Extended, b: gradclip_Extended) -> gradclip_Extended {
    let sign = (a.significand ^ b.significand) & gradclip_SIGN;
    let x = a.significand & gradclip_MAGNITUDE;
    let y = b.significand & gradclip_MAGNITUDE;
    if (x == 0u || y == 0u) {
        return gradclip_Extended(sign, 0);
    }
    let magnitude = gradclip_normalized(bitcast<f32>(x) * bitcast<f32>(y), a.exponent + b.exponent);
    return gradclip_Extended(sign | magnitude.significand, magnitude.exponent);
}

fn gradclip_exceeds(a: gradclip_Extended, b: gradclip_Extended) -> bool {
    if (a.significand == 0u || b.significand >= gradclip_INFINITY) {
        return false;
    }
    return b.significand == 0u || a.exponent > b.exponent || (a.exponent == b.exponent && a.significand > b.significand);
}

fn gradclip_nearest_f32(number: gradclip_Extended) -> u32 {
    let significand = number.significand & gradclip_MAGNITUDE;
    if (significand == 0u || significand >= gradclip_INFINITY) {
        return number.significand;
    }
    return (number.significand & gradclip_SIGN) | gradclip_scale_up(bitcast<f32>(significand), number.exponent);
}
` },
  f16WithStats: { elements: 4096, partialBytes: 16, wgsl: `
const gradclip_WORKGROUP_SIZE: u32 = 256u;
const gradclip_VECTORS: u32 = 2u;
const gradclip_STRIDE: u32 = gradclip_ELEMENTS_PER_VECTOR * gradclip_WORKGROUP_SIZE;

fn gradclip_partial_of_run(lane: u32, count: u32, vectors: array<vec4<u32>, gradclip_VECTORS>) -> gradclip_Partial {
    var held = vectors;
    let in_blocks = 4u * (count / (4u * gradclip_STRIDE));
    var sums = array<vec4<f32>, 4>();
    var tally = gradclip_Tally();
    for (var k = 0u; k < gradclip_VECTORS; k += 1u) {
        if (gradclip_ELEMENTS_PER_VECTOR * lane + k * gradclip_STRIDE < count) {
            let number = select(0u, k % 4u, k < in_blocks);
            sums[number] = gradclip_add_vector(sums[number], held[k]);
            tally = gradclip_tally_vector(tally, held[k]);
        }
    }
    let sum = gradclip_total_of_four(sums[0], sums[1], sums[2], sums[3]);
    var partial = gradclip_reduce(lane, gradclip_new_partial(sum, gradclip_magnitude_of_tally(tally), gradclip_counts_of_tally(tally)));
    if (gradclip_needs_scaling(partial.largest)) {
        let exponent = gradclip_exponent_of(partial.largest);
        var scaled = array<vec4<f32>, 4>();
        for (var k = 0u; k < gradclip_VECTORS; k += 1u) {
            if (gradclip_ELEMENTS_PER_VECTOR * lane + k * gradclip_STRIDE < count) {
                let number = select(0u, k % 4u, k < in_blocks);
                scaled[number] = gradclip_add_scaled_vector(scaled[number], held[k], exponent);
            }
        }
        let total = gradclip_total_of_four(scaled[0], scaled[1], scaled[2], scaled[3]);
        partial.sum = gradclip_reduce(lane, gradclip_new_partial(total, 0u, gradclip_Counts())).sum;
        partial.largest |= gradclip_SCALED;
    }
    let padding = (gradclip_ELEMENTS_PER_VECTOR - count % gradclip_ELEMENTS_PER_VECTOR) % gradclip_ELEMENTS_PER_VECTOR;
    return gradclip_memory_form(gradclip_without_padding(partial, padding));
}

const gradclip_ELEMENTS_PER_WORD: u32 = 2u;
const gradclip_ELEMENTS_PER_VECTOR: u32 = 8u;
const gradclip_PREFETCH: bool = false;
const gradclip_KEY_MASK: u32 = 0x7fff0000u;
const gradclip_INFINITY_KEY: u32 = 0x7c000000u;

fn gradclip_widen_even(words: vec4<u32>) -> vec4<u32> {
    return gradclip_widen_f16(words & vec4(0xffffu));
}

fn gradclip_widen_odd(words: vec4<u32>) -> vec4<u32> {
    return gradclip_widen_f16(words >> vec4(16u));
}

fn gradclip_widen_element(word: u32, index: u32) -> u32 {
    return gradclip_widen_f16(vec4((word >> (16u * index)) & 0xffffu)).x;
}

fn gradclip_widen_f16(half: vec4<u32>) -> vec4<u32> {
    return ((half & vec4(0x8000u)) << vec4(16u)) | gradclip_widen_magnitude(half & vec4(0x7fffu));
}

fn gradclip_widen_even_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return gradclip_widen_magnitude(words & vec4(0x7fffu));
}

fn gradclip_widen_odd_magnitudes(words: vec4<u32>) -> vec4<u32> {
    return gradclip_widen_magnitude((words >> vec4(16u)) & vec4(0x7fffu));
}

fn gradclip_widen_even_finite(words: vec4<u32>) -> vec4<u32> {
    return gradclip_widen_finite(words & vec4(0x7fffu));
}

fn gradclip_widen_odd_finite(words: vec4<u32>) -> vec4<u32> {
    return gradclip_widen_finite((words >> vec4(16u)) & vec4(0x7fffu));
}

fn gradclip_widen_magnitude(magnitude: vec4<u32>) -> vec4<u32> {
    let not_finite = (magnitude << vec4(13u)) | vec4(gradclip_INFINITY);
    return select(gradclip_widen_finite(magnitude), not_finite, magnitude >= vec4(0x7c00u));
}

fn gradclip_widen_finite(magnitude: vec4<u32>) -> vec4<u32> {
    let is_subnormal = magnitude < vec4(0x400u);
    let bits = (magnitude << vec4(13u)) + select(vec4(0x38000000u), vec4(0x38800000u), is_subnormal);
    let excess = select(vec4(0.0), vec4(gradclip_power_of_two(-14)), is_subnormal);
    return bitcast<vec4<u32>>(bitcast<vec4<f32>>(bits) - excess);
}

fn gradclip_with_signs(magnitudes: vec4<u32>, words: vec4<u32>) -> vec4<u32> {
    return magnitudes ^ (words & vec4(0x80008000u));
}

fn gradclip_magnitude_of_key(key: u32) -> u32 {
    return gradclip_widen_f16(vec4(key >> 16u)).x;
}

fn gradclip_narrow(bits: vec4<u32>) -> vec4<u32> {
    let magnitude = bits & vec4(gradclip_MAGNITUDE);
    let rebiased = magnitude - vec4(0x38000000u);
    let normal = (rebiased + vec4(0xfffu) + ((rebiased >> vec4(13u)) & vec4(1u))) >> vec4(13u);
    let subnormal = bitcast<vec4<u32>>(bitcast<vec4<f32>>(magnitude) + 0.5) - vec4(0x3f000000u);
    let finite = select(normal, subnormal, magnitude < vec4(0x38800000u));
    let bounded = select(finite, vec4(0x7c00u), magnitude >= vec4(0x47800000u));
    return ((bits >> vec4(16u)) & vec4(0x8000u)) | select(bounded, vec4(0x7e00u), magnitude > vec4(gradclip_INFINITY));
}

struct gradclip_Partial {
    sum: f32,     // of the norm's terms; of the scaled elements if gradclip_SCALED is set
    largest: u32, // the largest magnitude, as bits; gradclip_SCALED is its sign bit
    zeros: u32,
    non_finite: u32,
}

const gradclip_COUNTED: bool = true;
const gradclip_SCALED: u32 = gradclip_SIGN;
const gradclip_MISSING: u32 = 0xffffffffu;

fn gradclip_combine(a: gradclip_Partial, b: gradclip_Partial) -> gradclip_Partial {
    return gradclip_new_partial(a.sum + b.sum, max(a.largest, b.largest), gradclip_add_counts(gradclip_counts_of(a), gradclip_counts_of(b)));
}

fn gradclip_new_partial(sum: f32, largest: u32, counts: gradclip_Counts) -> gradclip_Partial {
    return gradclip_Partial(sum, largest, counts.zeros, counts.non_finite);
}

fn gradclip_select_partial(condition: bool, partial: gradclip_Partial) -> gradclip_Partial {
    let words = vec3(partial.largest, partial.zeros, partial.non_finite);
    let kept = select(vec3<u32>(), words, condition);
    return gradclip_Partial(select(0.0, partial.sum, condition), kept.x, kept.y, kept.z);
}

fn gradclip_counts_of(partial: gradclip_Partial) -> gradclip_Counts {
    return gradclip_Counts(partial.zeros, partial.non_finite);
}

fn gradclip_without_padding(partial: gradclip_Partial, padding: u32) -> gradclip_Partial {
    return gradclip_Partial(partial.sum, partial.largest, partial.zeros - padding, partial.non_finite);
}

fn gradclip_memory_form(partial: gradclip_Partial) -> gradclip_Partial {
    return gradclip_Partial(partial.sum, ~partial.largest, partial.zeros, partial.non_finite);
}

const gradclip_SMALLEST_UNSCALED: u32 = 0x2b800000u;
const gradclip_LARGEST_UNSCALED: u32 = 0x56000000u;

fn gradclip_needs_scaling(largest: u32) -> bool {
    let is_in_range = largest == 0u || (largest >= gradclip_SMALLEST_UNSCALED && largest <= gradclip_LARGEST_UNSCALED);
    return !is_in_range && largest < gradclip_INFINITY;
}

fn gradclip_accumulate(sum: vec4<f32>, bits: vec4<u32>) -> vec4<f32> {
    let g = bitcast<vec4<f32>>(bits);
    return fma(g, g, sum);
}

fn gradclip_accumulate_scaled(sum: vec4<f32>, bits: vec4<u32>, exponent: i32) -> vec4<f32> {
    let g = gradclip_scale_down_all(bits, exponent);
    return fma(g, g, sum);
}

const gradclip_LARGEST_SCALE: f32 = 9223372036854775808.0; // 2^63

fn gradclip_rescale_sum(sum: f32, scale: f32) -> f32 {
    let bounded = min(scale, gradclip_LARGEST_SCALE);
    return sum * bounded * bounded;
}

fn gradclip_norm_of(sum: f32, exponent: i32, largest: u32) -> gradclip_Extended {
    return gradclip_normalized(gradclip_square_root(sum), exponent);
}

var<workgroup> gradclip_sh_partials: array<gradclip_Partial, gradclip_WORKGROUP_SIZE>;

fn gradclip_reduce(lane: u32, partial: gradclip_Partial) -> gradclip_Partial {
    return gradclip_reduce_first(gradclip_WORKGROUP_SIZE, lane, partial);
}

fn gradclip_reduce_first(count: u32, lane: u32, partial: gradclip_Partial) -> gradclip_Partial {
    if (lane < count) {
        gradclip_sh_partials[lane] = partial;
    }
    for (var width = count / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if (lane < width) {
            gradclip_sh_partials[lane] = gradclip_combine(gradclip_sh_partials[lane], gradclip_sh_partials[lane + width]);
        }
    }
    return workgroupUniformLoad(&gradclip_sh_partials[0]);
}

fn gradclip_add_vector(sum: vec4<f32>, words: vec4<u32>) -> vec4<f32> {
    let even = gradclip_accumulate(sum, gradclip_widen_even_finite(words));
    if (gradclip_ELEMENTS_PER_WORD == 1u) {
        return even;
    }
    return gradclip_accumulate(even, gradclip_widen_odd_finite(words));
}

fn gradclip_add_scaled_vector(sum: vec4<f32>, words: vec4<u32>, exponent: i32) -> vec4<f32> {
    let even = gradclip_accumulate_scaled(sum, gradclip_widen_even(words), exponent);
    if (gradclip_ELEMENTS_PER_WORD == 1u) {
        return even;
    }
    return gradclip_accumulate_scaled(even, gradclip_widen_odd(words), exponent);
}

struct gradclip_Tally {
    largest_key: vec4<u32>,
    zeros: vec4<u32>,
    non_finite: vec4<u32>,
}

fn gradclip_tally_vector(tally: gradclip_Tally, words: vec4<u32>) -> gradclip_Tally {
    if (gradclip_ELEMENTS_PER_WORD == 1u) {
        return gradclip_tally_upper(tally, words);
    }
    return gradclip_tally_upper(gradclip_tally_upper(tally, words << vec4(16u)), words);
}

fn gradclip_tally_upper(tally: gradclip_Tally, words: vec4<u32>) -> gradclip_Tally {
    let keys = words & vec4(gradclip_KEY_MASK);
    var next = tally;
    next.largest_key = max(tally.largest_key, keys);
    if (gradclip_COUNTED) {
        next.zeros += select(vec4(0u), vec4(1u), keys == vec4(0u));
        next.non_finite += select(vec4(0u), vec4(1u), keys >= vec4(gradclip_INFINITY_KEY));
    }
    return next;
}

fn gradclip_magnitude_of_tally(tally: gradclip_Tally) -> u32 {
    let key = max(max(tally.largest_key.x, tally.largest_key.y), max(tally.largest_key.z, tally.largest_key.w));
    return gradclip_magnitude_of_key(key);
}

fn gradclip_counts_of_tally(tally: gradclip_Tally) -> gradclip_Counts {
    return gradclip_Counts(gradclip_sum_of_lanes(tally.zeros), gradclip_sum_of_lanes(tally.non_finite));
}

fn gradclip_sum_of_lanes(count: vec4<u32>) -> u32 {
    return (count.x + count.y) + (count.z + count.w);
}

fn gradclip_total_of(sum: vec4<f32>) -> f32 {
    var first = sum.x + sum.y;
    var second = sum.z + sum.w;
    return first + second;
}

fn gradclip_total_of_four(sum0: vec4<f32>, sum1: vec4<f32>, sum2: vec4<f32>, sum3: vec4<f32>) -> f32 {
    var total = sum0;
    total += sum1;
    total += sum2;
    total += sum3;
    return gradclip_total_of(total);
}

const gradclip_SIGN: u32 = 0x80000000u;
const gradclip_MAGNITUDE: u32 = 0x7fffffffu;
const gradclip_INFINITY: u32 = 0x7f800000u; // a magnitude above it is a NaN
const gradclip_NAN: u32 = 0x7fc00000u;
const gradclip_ONE: u32 = 0x3f800000u;
const gradclip_SMALLEST_NORMAL: u32 = 0x00800000u;

fn gradclip_exponent_of(magnitude: u32) -> i32 {
    let field = i32(magnitude >> 23u);
    return select(i32(firstLeadingBit(magnitude)) - 149, field - 127, field != 0);
}

fn gradclip_power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

fn gradclip_scale_down(magnitude: u32, exponent: i32) -> f32 {
    let field = magnitude >> 23u;
    let significand = (magnitude & 0x7fffffu) | select(0u, 0x800000u, field != 0u);
    let power = max(i32(field), 1) - 150 - exponent;
    return select(0.0, f32(significand) * gradclip_power_of_two(max(power, -100)), power > -100);
}

fn gradclip_scale_down_all(bits: vec4<u32>, exponent: i32) -> vec4<f32> {
    let m = bits & vec4(gradclip_MAGNITUDE);
    return vec4(
        gradclip_scale_down(m.x, exponent),
        gradclip_scale_down(m.y, exponent),
        gradclip_scale_down(m.z, exponent),
        gradclip_scale_down(m.w, exponent),
    );
}

fn gradclip_scale_up(value: f32, exponent: i32) -> u32 {
    let bits = bitcast<u32>(value);
    let field = i32(bits >> 23u) + exponent;
    if (field >= 255) {
        return gradclip_INFINITY;
    }
    if (field > 0) {
        return (bits & 0x7fffffu) | (u32(field) << 23u);
    }
    let significand = (bits & 0x7fffffu) | 0x800000u;
    let drop = u32(1 - field);
    if (drop > 24u) {
        return 0u;
    }
    let kept = significand >> drop;
    let rest = significand & ((1u << drop) - 1u);
    let half = 1u << (drop - 1u);
    return kept + select(0u, 1u, rest > half || (rest == half && (kept & 1u) == 1u));
}

struct gradclip_Counts {
    zeros: u32,
    non_finite: u32,
}

fn gradclip_add_counts(a: gradclip_Counts, b: gradclip_Counts) -> gradclip_Counts {
    return gradclip_Counts(a.zeros + min(b.zeros, ~a.zeros), a.non_finite + min(b.non_finite, ~a.non_finite));
}

const gradclip_MAX_CORRECTIONS: u32 = 16u;

fn gradclip_square_root(value: f32) -> f32 {
    let bits = bitcast<u32>(value);
    let exponent = i32(bits >> 23u) - 127;
    let odd = exponent & 1;
    let radicand = ((bits & 0x7fffffu) | 0x800000u) << u32(odd);
    var root = u32(sqrt(f32(radicand) * gradclip_power_of_two(-23)) * gradclip_power_of_two(23));
    var remainder = i32((radicand << 23u) - root * root);
    for (var step = 0u; step < gradclip_MAX_CORRECTIONS; step += 1u) {
        if (remainder > i32(root)) {
            remainder -= i32(2u * root + 1u);
            root += 1u;
        } else if (remainder <= -i32(root)) {
            remainder += i32(2u * root - 1u);
            root -= 1u;
        } else {
            break;
        }
    }
    return f32(root) * gradclip_power_of_two((exponent - odd) / 2 - 23);
}

fn gradclip_reciprocal(value: f32) -> f32 {
    let divisor = i32((bitcast<u32>(value) & 0x7fffffu) | 0x800000u);
    var quotient = u32(gradclip_power_of_two(24) / value);
    var remainder = -i32(quotient * u32(divisor));
    for (var step = 0u; step < gradclip_MAX_CORRECTIONS; step += 1u) {
        if (2 * remainder > divisor) {
            remainder -= divisor;
            quotient += 1u;
        } else if (2 * remainder < -divisor) {
            remainder += divisor;
            quotient -= 1u;
        } else {
            break;
        }
    }
    return f32(quotient) * gradclip_power_of_two(-24);
}

struct gradclip_Extended {
    significand: u32,
    exponent: i32,
}

fn gradclip_extended(bits: u32) -> gradclip_Extended {
    let magnitude = bits & gradclip_MAGNITUDE;
    if (magnitude == 0u || magnitude >= gradclip_INFINITY) {
        return gradclip_Extended(bits, 0);
    }
    if (magnitude >= gradclip_SMALLEST_NORMAL) {
        return gradclip_Extended((bits & gradclip_SIGN) | (magnitude & 0x7fffffu) | gradclip_ONE, i32(magnitude >> 23u) - 127);
    }
    let exponent = gradclip_exponent_of(magnitude);
    return gradclip_Extended((bits & gradclip_SIGN) | bitcast<u32>(gradclip_scale_down(magnitude, exponent)), exponent);
}

fn gradclip_normalized(value: f32, exponent: i32) -> gradclip_Extended {
    let bits = bitcast<u32>(value);
    return gradclip_Extended((bits & 0x7fffffu) | gradclip_ONE, exponent + i32(bits >> 23u) - 127);
}

fn gradclip_extended_product(a: gradclip_Extended, b: gradclip_Extended) -> gradclip_Extended {
    let sign = (a.significand ^ b.significand) & gradclip_SIGN;
    let x = a.significand & gradclip_MAGNITUDE;
    let y = b.significand & gradclip_MAGNITUDE;
    if (x == 0u || y == 0u) {
        return gradclip_Extended(sign, 0);
    }
    let magnitude = gradclip_normalized(bitcast<f32>(x) * bitcast<f32>(y), a.exponent + b.exponent);
    return gradclip_Extended(sign | magnitude.significand, magnitude.exponent);
}

fn gradclip_exceeds(a: gradclip_Extended, b: gradclip_Extended) -> bool {
    if (a.significand == 0u || b.significand >= gradclip_INFINITY) {
        return false;
    }
    return b.significand == 0u || a.exponent > b.exponent || (a.exponent == b.exponent && a.significand > b.significand);
}

fn gradclip_nearest_f32(number: gradclip_Extended) -> u32 {
    let significand = number.significand & gradclip_MAGNITUDE;
    if (significand == 0u || significand >= gradclip_INFINITY) {
        return number.significand;
    }
    return (number.significand & gradclip_SIGN) | gradclip_scale_up(bitcast<f32>(significand), number.exponent);
}
` },
};
