// The recurrent layer:
//
//   z[t] = embedding[token[t]] + bias + weightᵀ h[t]        h[t + 1] = relu(z[t])        h[0] = 0
//
// One workgroup for each sequence, one invocation for each hidden unit (HIDDEN == WORKGROUP_SIZE). main.rs prepends the
// sizes and the offsets of the parameters as constants.

@group(0) @binding(0) var<storage, read> tokens: array<u32>;      // [BATCH, LENGTH + 1]
@group(0) @binding(1) var<storage, read> parameters: array<f32>;
@group(0) @binding(2) var<storage, read_write> states: array<f32>; // [LENGTH + 1, BATCH, HIDDEN]

var<workgroup> sh_state: array<f32, HIDDEN>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) unit: u32) {
    let sequence = workgroup.x;
    var state = 0.0;
    states[sequence * HIDDEN + unit] = state;
    for (var t = 0u; t < LENGTH; t += 1u) {
        sh_state[unit] = state;
        workgroupBarrier();
        let token = tokens[sequence * (LENGTH + 1u) + t];
        var sum = parameters[EMBEDDING + token * HIDDEN + unit] + parameters[BIAS + unit];
        for (var k = 0u; k < HIDDEN; k += 1u) {
            sum += parameters[WEIGHT + k * HIDDEN + unit] * sh_state[k];
        }
        state = max(sum, 0.0);
        states[((t + 1u) * BATCH + sequence) * HIDDEN + unit] = state;
        workgroupBarrier();
    }
}
