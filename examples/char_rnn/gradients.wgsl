// The gradients of the parameters, summed over all token positions: input times gradient of the output.
//
// One invocation for each parameter from FIRST to END. The gradients of the head need no backpropagation through time.

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read> states: array<f32>;
@group(0) @binding(2) var<storage, read> logit_grads: array<f32>;
@group(0) @binding(3) var<storage, read> input_grads: array<f32>;
@group(0) @binding(4) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let parameter = FIRST + id.x;
    if (parameter >= END) {
        return;
    }
    let unit = parameter % HIDDEN; // every tensor before HEAD_BIAS starts at a multiple of HIDDEN
    if (parameter < WEIGHT) {
        gradients[parameter] = embedding_grad((parameter - EMBEDDING) / HIDDEN, unit);
    } else if (parameter < BIAS) {
        gradients[parameter] = weight_grad((parameter - WEIGHT) / HIDDEN, unit);
    } else if (parameter < HEAD) {
        gradients[parameter] = bias_grad(unit);
    } else if (parameter < HEAD_BIAS) {
        gradients[parameter] = head_grad((parameter - HEAD) / HIDDEN, unit);
    } else {
        gradients[parameter] = head_bias_grad(parameter - HEAD_BIAS);
    }
}

fn embedding_grad(token: u32, unit: u32) -> f32 {
    var sum = 0.0;
    for (var position = 0u; position < LENGTH * BATCH; position += 1u) {
        if (tokens[(position % BATCH) * (LENGTH + 1u) + position / BATCH] == token) {
            sum += input_grads[position * HIDDEN + unit];
        }
    }
    return sum;
}

fn weight_grad(row: u32, unit: u32) -> f32 {
    var sum = 0.0;
    for (var position = 0u; position < LENGTH * BATCH; position += 1u) {
        sum += states[position * HIDDEN + row] * input_grads[position * HIDDEN + unit];
    }
    return sum;
}

fn bias_grad(unit: u32) -> f32 {
    var sum = 0.0;
    for (var position = 0u; position < LENGTH * BATCH; position += 1u) {
        sum += input_grads[position * HIDDEN + unit];
    }
    return sum;
}

fn head_grad(row: u32, unit: u32) -> f32 {
    var sum = 0.0;
    for (var position = 0u; position < LENGTH * BATCH; position += 1u) {
        sum += logit_grads[position * VOCABULARY + row] * states[(position + BATCH) * HIDDEN + unit];
    }
    return sum;
}

fn head_bias_grad(row: u32) -> f32 {
    var sum = 0.0;
    for (var position = 0u; position < LENGTH * BATCH; position += 1u) {
        sum += logit_grads[position * VOCABULARY + row];
    }
    return sum;
}
