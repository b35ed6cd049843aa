// A step of SGD without momentum. One invocation for each element.

@group(0) @binding(0) var<storage, read> learning_rate: f32;
@group(0) @binding(1) var<storage, read> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> parameter: array<f32>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < arrayLength(&parameter)) {
        parameter[id.x] -= learning_rate * gradient[id.x];
    }
}
