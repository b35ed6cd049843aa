// The in-place roofline: reads and rewrites all vectors of a binding. A thread loads four vectors per step.

override WORKGROUP: u32;
// Steps per tile.
override STEPS: u32;

@group(0) @binding(0) var<storage, read_write> data: array<vec4<u32>>;
// Holds 0, but is opaque to the compiler: every vector is written back unchanged.
@group(0) @binding(1) var<storage, read_write> mask: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let len = arrayLength(&data);
    let tile = (workgroup.y * grid.x + workgroup.x) * (STEPS * 4u * WORKGROUP);
    let bits = vec4(mask[0]);
    if tile + STEPS * 4u * WORKGROUP <= len {
        for (var step = 0u; step < STEPS; step++) {
            let at = tile + step * 4u * WORKGROUP + lane;
            let a = data[at];
            let b = data[at + WORKGROUP];
            let c = data[at + 2u * WORKGROUP];
            let d = data[at + 3u * WORKGROUP];
            data[at] = a ^ bits;
            data[at + WORKGROUP] = b ^ bits;
            data[at + 2u * WORKGROUP] = c ^ bits;
            data[at + 3u * WORKGROUP] = d ^ bits;
        }
    } else {
        for (var at = tile + lane; at < len; at += WORKGROUP) {
            data[at] ^= bits;
        }
    }
}
