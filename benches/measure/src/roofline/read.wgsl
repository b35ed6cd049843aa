// The read roofline: loads all vectors of a binding. A thread loads four vectors per step.

override WORKGROUP: u32;
// Steps per tile.
override STEPS: u32;

@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> never: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let len = arrayLength(&data);
    let tile = (workgroup.y * grid.x + workgroup.x) * (STEPS * 4u * WORKGROUP);
    var a = vec4(0u);
    var b = vec4(0u);
    var c = vec4(0u);
    var d = vec4(0u);
    if tile + STEPS * 4u * WORKGROUP <= len {
        for (var step = 0u; step < STEPS; step++) {
            let at = tile + step * 4u * WORKGROUP + lane;
            a ^= data[at];
            b ^= data[at + WORKGROUP];
            c ^= data[at + 2u * WORKGROUP];
            d ^= data[at + 3u * WORKGROUP];
        }
    } else {
        for (var at = tile + lane; at < len; at += WORKGROUP) {
            a ^= data[at];
        }
    }
    // Keeps the compiler from removing loads. Random bits never match.
    let all = a ^ b ^ c ^ d;
    if all.x == 0x13579bdfu && all.y == 0x2468ace0u && all.z == 0x89abcdefu && all.w == 0x76543210u {
        never[0] = 1u;
    }
}
