// The gradients of the parameters, summed over all token positions: input times gradient of the output.
//
// One workgroup for each run of parameters from FIRST to END. The gradients of the head need no backpropagation through
// time.
//
// The workgroup measures its gradients while they are in registers. The names that start with `gradclip_` come from
// gradclip::kernels::Producer. With its default shape, the norm has the same bits as in gradclip's own pass.

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read> states: array<f32>;
@group(0) @binding(2) var<storage, read> logit_grads: array<f32>;
@group(0) @binding(3) var<storage, read> input_grads: array<f32>;
@group(0) @binding(4) var<storage, read_write> gradients: array<f32>;
@group(0) @binding(5) var<storage, read_write> partials: array<gradclip_Partial>;

const IN_RUN = 4u * gradclip_VECTORS * gradclip_WORKGROUP_SIZE;

@compute @workgroup_size(gradclip_WORKGROUP_SIZE)
fn main(@builtin(workgroup_id) run: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = FIRST + run.x * IN_RUN;
    var held: array<vec4<u32>, gradclip_VECTORS>; // 0 past the end
    for (var k = 0u; k < 4u * gradclip_VECTORS; k += 1u) {
        let parameter = first + 4u * (lane + (k / 4u) * gradclip_WORKGROUP_SIZE) + k % 4u;
        if (parameter < END) {
            let gradient = gradient_of(parameter);
            gradients[parameter] = gradient;
            held[k / 4u][k % 4u] = bitcast<u32>(gradient);
        }
    }
    if (MEASURE) {
        let partial = gradclip_partial_of_run(lane, min(IN_RUN, END - first), held);
        if (lane == 0u) {
            partials[FIRST_PARTIAL + run.x] = partial;
        }
    }
}

fn gradient_of(parameter: u32) -> f32 {
    let unit = parameter % HIDDEN; // every tensor before HEAD_BIAS starts at a multiple of HIDDEN
    if (parameter < WEIGHT) {
        return embedding_grad((parameter - EMBEDDING) / HIDDEN, unit);
    } else if (parameter < BIAS) {
        return weight_grad((parameter - WEIGHT) / HIDDEN, unit);
    } else if (parameter < HEAD) {
        return bias_grad(unit);
    } else if (parameter < HEAD_BIAS) {
        return head_grad((parameter - HEAD) / HIDDEN, unit);
    }
    return head_bias_grad(parameter - HEAD_BIAS);
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
