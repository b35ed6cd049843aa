// The gradient of every parameter: over all places, what it was multiplied by times the gradient of what came of it.
//
// An invocation a parameter.

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read> states: array<f32>;
@group(0) @binding(2) var<storage, read> logit_grads: array<f32>;
@group(0) @binding(3) var<storage, read> input_grads: array<f32>;
@group(0) @binding(4) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let parameter = id.x;
    if (parameter >= arrayLength(&gradients)) {
        return;
    }
    let unit = parameter % HIDDEN; // all tables begin at a multiple of it, but for the last
    if (parameter < WEIGHT) {
        gradients[parameter] = of_embedding((parameter - EMBEDDING) / HIDDEN, unit);
    } else if (parameter < BIAS) {
        gradients[parameter] = of_weight((parameter - WEIGHT) / HIDDEN, unit);
    } else if (parameter < HEAD) {
        gradients[parameter] = of_bias(unit);
    } else if (parameter < HEAD_BIAS) {
        gradients[parameter] = of_head((parameter - HEAD) / HIDDEN, unit);
    } else {
        gradients[parameter] = of_head_bias(parameter - HEAD_BIAS);
    }
}

fn of_embedding(token: u32, unit: u32) -> f32 {
    var sum = 0.0;
    for (var place = 0u; place < LENGTH * BATCH; place += 1u) {
        if (tokens[(place % BATCH) * (LENGTH + 1u) + place / BATCH] == token) {
            sum += input_grads[place * HIDDEN + unit];
        }
    }
    return sum;
}

fn of_weight(row: u32, unit: u32) -> f32 {
    var sum = 0.0;
    for (var place = 0u; place < LENGTH * BATCH; place += 1u) {
        sum += states[place * HIDDEN + row] * input_grads[place * HIDDEN + unit];
    }
    return sum;
}

fn of_bias(unit: u32) -> f32 {
    var sum = 0.0;
    for (var place = 0u; place < LENGTH * BATCH; place += 1u) {
        sum += input_grads[place * HIDDEN + unit];
    }
    return sum;
}

fn of_head(row: u32, unit: u32) -> f32 {
    var sum = 0.0;
    for (var place = 0u; place < LENGTH * BATCH; place += 1u) {
        sum += logit_grads[place * VOCABULARY + row] * states[(place + BATCH) * HIDDEN + unit];
    }
    return sum;
}

fn of_head_bias(row: u32) -> f32 {
    var sum = 0.0;
    for (var place = 0u; place < LENGTH * BATCH; place += 1u) {
        sum += logit_grads[place * VOCABULARY + row];
    }
    return sum;
}
