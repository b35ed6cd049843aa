// A stand-in for the backward pass: writes a tensor of pseudo-random f32 gradients, one workgroup for each run.
// `Producer::wgsl` comes before this text.

struct Tensor {
    first: u32,     // the index of the first element in the arena
    elements: u32,
    first_run: u32, // the index of the first partial
    seed: u32,
}

@group(0) @binding(0) var<uniform> tensor: Tensor;
@group(0) @binding(1) var<storage, read_write> gradients: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> partials: array<gradclip_Partial>;

const RUN: u32 = 4u * gradclip_WORKGROUP_SIZE * gradclip_VECTORS; // in elements

// A PCG hash of the index. `uniform` in bench.rs is the same on the host.
fn uniform_bits(index: u32) -> u32 {
    let state = (index + tensor.seed) * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    let hash = (word >> 22u) ^ word;
    // 24 bits are exact in f32: every operation is exact.
    return bitcast<u32>(f32(hash >> 8u) * 0x1p-23 - 1.0);
}

// Writes a run and returns the vectors of the invocation.
fn write_run(run: u32, lane: u32) -> array<vec4<u32>, gradclip_VECTORS> {
    var held: array<vec4<u32>, gradclip_VECTORS>;
    for (var k = 0u; k < gradclip_VECTORS; k += 1u) {
        let at = run * RUN + 4u * (lane + k * gradclip_WORKGROUP_SIZE);
        if (at < tensor.elements) {
            let index = tensor.first + at;
            held[k] = vec4(
                uniform_bits(index), uniform_bits(index + 1u), uniform_bits(index + 2u), uniform_bits(index + 3u),
            );
            gradients[index / 4u] = held[k];
        }
    }
    return held;
}

@compute @workgroup_size(gradclip_WORKGROUP_SIZE)
fn produce(@builtin(workgroup_id) run: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    _ = write_run(run.x, lane);
}

@compute @workgroup_size(gradclip_WORKGROUP_SIZE)
fn produce_with_partials(@builtin(workgroup_id) run: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let held = write_run(run.x, lane);
    let partial = gradclip_partial_of_run(lane, min(RUN, tensor.elements - run.x * RUN), held);
    if (lane == 0u) {
        partials[tensor.first_run + run.x] = partial;
    }
}
