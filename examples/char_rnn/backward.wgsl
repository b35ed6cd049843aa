// Backpropagation through time: the gradient of the loss with respect to z, the input of each hidden unit.
//
//   d h[t + 1] = headᵀ d logit[t] + weight d z[t + 1]        d z[t] = d h[t + 1] where h[t + 1] > 0
//
// One workgroup for each sequence, one invocation for each hidden unit. The repeated product with the same weight makes
// gradients explode.

@group(0) @binding(0) var<storage, read> parameters: array<f32>;
@group(0) @binding(1) var<storage, read> states: array<f32>;
@group(0) @binding(2) var<storage, read> logit_grads: array<f32>;
@group(0) @binding(3) var<storage, read_write> input_grads: array<f32>; // [LENGTH, BATCH, HIDDEN]

var<workgroup> sh_grad: array<f32, HIDDEN>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) unit: u32) {
    let sequence = workgroup.x;
    sh_grad[unit] = 0.0;
    workgroupBarrier();
    for (var t = LENGTH; t > 0u; t -= 1u) {
        let position = (t - 1u) * BATCH + sequence;
        var grad = 0.0;
        for (var k = 0u; k < HIDDEN; k += 1u) {
            grad += parameters[WEIGHT + unit * HIDDEN + k] * sh_grad[k];
        }
        for (var v = 0u; v < VOCABULARY; v += 1u) {
            grad += parameters[HEAD + v * HIDDEN + unit] * logit_grads[position * VOCABULARY + v];
        }
        let is_active = states[(position + BATCH) * HIDDEN + unit] > 0.0;
        grad = select(0.0, grad, is_active);
        input_grads[position * HIDDEN + unit] = grad;
        workgroupBarrier();
        sh_grad[unit] = grad;
        workgroupBarrier();
    }
}
