// Norm pass, after finalize, for auto-clip: adds the norm to the window of the last norms. If a percentile of that window is
// smaller than the limit, it computes the coefficient again. P. Seetharaman et al., "AutoClip: Adaptive Gradient Clipping for
// Source Separation Networks" (2020); auto_clip.rs in Rust.
//
//   position = (count - 1) * percentile / 100
//   limit    = sorted[floor(position)] + fract(position) * (sorted[floor(position) + 1] - sorted[floor(position)])
//
// Norms are kept and compared as bits: their integers have the order of positive floats, and no device flushes them.
//
// One workgroup for each segment.
//
// requires: workgroup, segment, clip_coef, clip_record, float_bits, extended
// binds: segments, norm_params, norm_windows, records
// constants: WORKGROUP_SIZE

const MAX_WINDOW: u32 = 1024u;
const NORMS_PER_LANE: u32 = 4u; // MAX_WINDOW / WORKGROUP_SIZE
const HEADER: u32 = 3u;         // the words before the norms: the length of the window, count, next
const LARGEST_FINITE: u32 = 0x7f7fffffu;
const HUNDRED_PERCENT: u32 = 3276800u; // in steps of 2^-15 percent

// The window of a segment.
struct Ring {
    first: u32, // the index of its first norm in `norm_windows`
    len: u32,   // the number of norms that it can hold
    count: u32, // the number of norms that it holds, with the new one
    next: u32,  // where the new norm goes
}

var<workgroup> sh_norms: array<u32, MAX_WINDOW>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup_index(workgroup, grid);
    if (index >= arrayLength(&segments)) {
        return;
    }
    var record = records[index];
    let ring = ring_of(index);
    let norm = min(nearest_f32(norm_of_record(record)), LARGEST_FINITE);

    let places = vec4(lane) + WORKGROUP_SIZE * vec4(0u, 1u, 2u, 3u);
    var own = vec4(NO_NORM);
    for (var i = 0u; i < NORMS_PER_LANE; i++) {
        own[i] = norm_at(places[i], ring, norm);
        sh_norms[places[i]] = own[i];
    }
    workgroupBarrier();
    let ranks = ranks_of(own, places, ring.count);
    workgroupBarrier();
    for (var i = 0u; i < NORMS_PER_LANE; i++) {
        if (places[i] < ring.count) {
            sh_norms[ranks[i]] = own[i];
        }
    }
    workgroupBarrier();

    // Norms that are zero, missing or not finite do not enter the window.
    let is_non_finite = (record.flags & CLIP_RECORD_NON_FINITE) != 0u;
    let is_excluded = is_non_finite || norm == 0u || !clip_record_has_norm(record);
    if (lane != 0u || is_excluded) {
        return;
    }
    norm_windows[ring.first - HEADER + 1u] = ring.count;
    norm_windows[ring.first - HEADER + 2u] = (ring.next + 1u) % ring.len;
    norm_windows[ring.first + ring.next] = norm;
    let limit = percentile(ring.count);
    // As signed integers, since a limit that is copied on the device may be negative.
    if (limit < norm && bitcast<i32>(limit) < bitcast<i32>(segments[index].max_norm)) {
        set_clip_coef(&record, extended(limit));
        records[index] = record;
    }
}

fn ring_of(index: u32) -> Ring {
    let len = norm_windows[0];
    let start = index * (HEADER + len);
    return Ring(start + HEADER, len, min(norm_windows[start + 1u] + 1u, len), norm_windows[start + 2u]);
}

// Returns the norm at a place of the ring, as if the new norm were in it; NO_NORM if there is none.
fn norm_at(place: u32, ring: Ring, new_norm: u32) -> u32 {
    if (place >= ring.count) {
        return NO_NORM;
    }
    if (place == ring.next) {
        return new_norm;
    }
    return norm_windows[ring.first + place];
}

// Returns the ranks of four norms within the window. Equal norms keep their order, so that no two have the same rank.
fn ranks_of(own: vec4<u32>, places: vec4<u32>, count: u32) -> vec4<u32> {
    var ranks = vec4(0u);
    for (var place = 0u; place < count; place++) {
        let other = vec4(sh_norms[place]);
        let is_before = (other < own) | ((other == own) & (vec4(place) < places));
        ranks += select(vec4(0u), vec4(1u), is_before);
    }
    return ranks;
}

// Returns the percentile of the sorted norms.
fn percentile(count: u32) -> u32 {
    let last = count - 1u;
    // The position is computed in integers, so that rounding cannot move it off a norm.
    let rest = f32(last) * norm_params.percentile_rest;
    let steps = last * norm_params.percentile_steps + u32(rest);
    let low = steps / HUNDRED_PERCENT;
    let share = (f32(steps % HUNDRED_PERCENT) + fract(rest)) / f32(HUNDRED_PERCENT);
    return interpolated(sh_norms[low], sh_norms[min(low + 1u, last)], share);
}

// Returns low + share * (high - low). The difference is computed after a division by the power of two of `high`.
fn interpolated(low: u32, high: u32, share: f32) -> u32 {
    if (low == high || share == 0.0) {
        return low;
    }
    let upper = extended(high);
    let lower = scale_down(low, upper.exponent);
    let value = lower + share * (bitcast<f32>(upper.significand) - lower);
    return clamp(nearest_f32(normalized(value, upper.exponent)), low, high);
}
