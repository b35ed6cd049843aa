// Computes the gradient of ½ Σ (parameter - target)². One invocation for each element.

@group(0) @binding(0) var<storage, read> targets: array<f32>;
@group(0) @binding(1) var<storage, read> parameters: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < arrayLength(&gradients)) {
        gradients[id.x] = parameters[id.x] - targets[id.x];
    }
}
