// Plain SGD over an arena. `CLIP_RECORD_WGSL` comes before this text.

@group(0) @binding(0) var<storage, read> gradients: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> parameters: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> record: ClipRecord;

const WORKGROUP_SIZE: u32 = 256u;
// Vectors of an invocation.
const VECTORS: u32 = 4u;
// A power of two: the product is exact, so that a fused multiply-add has the same bits.
const LEARNING_RATE: f32 = 0x1p-10;

// The gradients are used as they are.
@compute @workgroup_size(WORKGROUP_SIZE)
fn step(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var k = 0u; k < VECTORS; k += 1u) {
        let at = (workgroup.x * VECTORS + k) * WORKGROUP_SIZE + lane;
        if (at < arrayLength(&parameters)) {
            parameters[at] -= LEARNING_RATE * gradients[at];
        }
    }
}

// The gradients are multiplied by the factor of the record.
@compute @workgroup_size(WORKGROUP_SIZE)
fn step_with_factor(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if ((record.flags & CLIP_RECORD_SKIP) != 0u) {
        return;
    }
    for (var k = 0u; k < VECTORS; k += 1u) {
        let at = (workgroup.x * VECTORS + k) * WORKGROUP_SIZE + lane;
        if (at < arrayLength(&parameters)) {
            let g = gradients[at];
            parameters[at] -= LEARNING_RATE * vec4(
                clip_record_scaled(record, g.x),
                clip_record_scaled(record, g.y),
                clip_record_scaled(record, g.z),
                clip_record_scaled(record, g.w),
            );
        }
    }
}
