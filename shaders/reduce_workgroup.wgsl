// The items of a workgroup's invocations joined to one, by a tree in workgroup memory.
//
// Interface: `reduce`, `reduce_first`, `sh_items`. Needs a stage's type `Item` and its `join`, workgroup.wgsl.

var<workgroup> sh_items: array<Item, WORKGROUP_SIZE>;

// Every invocation gets the result. All must call it.
fn reduce(lane: u32, own: Item) -> Item {
    return reduce_first(WORKGROUP_SIZE, lane, own);
}

// The same of the first `count` invocations only, a power of two.
fn reduce_first(count: u32, lane: u32, own: Item) -> Item {
    if (lane < count) {
        sh_items[lane] = own;
    }
    for (var width = count / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if (lane < width) {
            sh_items[lane] = join(sh_items[lane], sh_items[lane + width]);
        }
    }
    return workgroupUniformLoad(&sh_items[0]);
}
