// Reduces one partial for each invocation of a workgroup to a single partial, by a tree in workgroup memory.
//
// provides: reduce, reduce_first, sh_partials
// requires: partials
// constants: WORKGROUP_SIZE

var<workgroup> sh_partials: array<Partial, WORKGROUP_SIZE>;

// Returns the reduction to every invocation. All invocations must call it.
fn reduce(lane: u32, partial: Partial) -> Partial {
    return reduce_first(WORKGROUP_SIZE, lane, partial);
}

// Reduces the partials of the first `count` invocations; `count` is a power of two. All invocations must call it.
fn reduce_first(count: u32, lane: u32, partial: Partial) -> Partial {
    if (lane < count) {
        sh_partials[lane] = partial;
    }
    for (var width = count / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if (lane < width) {
            sh_partials[lane] = combine(sh_partials[lane], sh_partials[lane + width]);
        }
    }
    return workgroupUniformLoad(&sh_partials[0]);
}
