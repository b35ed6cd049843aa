// The partials of a workgroup's invocations joined to one, by a tree in workgroup memory.
//
// Interface: `reduce`. Needs `Partial` and `combine` of a norm, workgroup.wgsl.

var<workgroup> sh_partials: array<Partial, WORKGROUP_SIZE>;

// Every invocation gets the result. All must call it.
fn reduce(lane: u32, own: Partial) -> Partial {
    sh_partials[lane] = own;
    for (var width = WORKGROUP_SIZE / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if (lane < width) {
            sh_partials[lane] = combine(sh_partials[lane], sh_partials[lane + width]);
        }
    }
    return workgroupUniformLoad(&sh_partials[0]);
}
