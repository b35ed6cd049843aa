// One workgroup runs one sequence forward and backward through time. Invocation i is hidden unit i.
//
// Sequences are generated here: value, mark and target depend only on the seed, the step and the sequence (model.ts).

@group(0) @binding(0) var<uniform> settings: Settings;
// The number of steps that have been taken.
@group(0) @binding(1) var<storage, read> step: u32;
@group(0) @binding(2) var<storage, read> parameters: array<f32>;
// [sequence][time][unit]: the hidden state after each time step.
@group(0) @binding(3) var<storage, read_write> hidden: array<f32>;
// [sequence][time][unit]: the derivative of the loss by the sum that enters each unit.
@group(0) @binding(4) var<storage, read_write> deltas: array<f32>;
// [sequence][time]: value and mark.
@group(0) @binding(5) var<storage, read_write> inputs: array<vec2f>;
// [sequence]: output minus target.
@group(0) @binding(6) var<storage, read_write> errors: array<f32>;

var<workgroup> shared_units: array<f32, HIDDEN>;

fn hash(value: u32) -> u32 {
    var x = value;
    x = (x ^ (x >> 16u)) * 0x21f0aaadu;
    x = (x ^ (x >> 15u)) * 0x735a2d97u;
    return x ^ (x >> 15u);
}

fn value_at(key: u32, time: u32) -> f32 {
    return f32(hash(key + time) >> 8u) / 16777216.0;
}

@compute @workgroup_size(HIDDEN)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) unit: u32) {
    let sequence = group.x;
    let key = hash(settings.seed ^ hash(step * BATCH + sequence));
    let first = hash(key + LENGTH) % (LENGTH / 2u);
    let second = LENGTH / 2u + hash(key + LENGTH + 1u) % (LENGTH / 2u);
    let target_sum = value_at(key, first) + value_at(key, second);

    // Row and column of the recurrent weight, for the forward and the backward pass.
    var row: array<f32, HIDDEN>;
    for (var j = 0u; j < HIDDEN; j++) {
        row[j] = parameters[RECURRENT + unit * HIDDEN + j];
    }
    let value_weight = parameters[unit];
    let mark_weight = parameters[HIDDEN + unit];
    let bias = parameters[BIAS + unit];

    shared_units[unit] = 0.0;
    var state = 0.0;
    for (var time = 0u; time < LENGTH; time++) {
        workgroupBarrier();
        let value = value_at(key, time);
        let mark = select(0.0, 1.0, time == first || time == second);
        var sum = bias + value_weight * value + mark_weight * mark;
        for (var j = 0u; j < HIDDEN; j++) {
            sum += row[j] * shared_units[j];
        }
        // Not max: a NaN must stay one.
        state = select(sum, 0.0, sum < 0.0);
        workgroupBarrier();
        shared_units[unit] = state;
        hidden[(sequence * LENGTH + time) * HIDDEN + unit] = state;
        if unit == 0u {
            inputs[sequence * LENGTH + time] = vec2f(value, mark);
        }
    }
    workgroupBarrier();
    var output = parameters[OUTPUT_BIAS];
    for (var j = 0u; j < HIDDEN; j++) {
        output += parameters[OUTPUT + j] * shared_units[j];
    }
    let error = output - target_sum;
    if unit == 0u {
        errors[sequence] = error;
    }

    for (var j = 0u; j < HIDDEN; j++) {
        row[j] = parameters[RECURRENT + j * HIDDEN + unit];
    }
    var delta = 2.0 / f32(BATCH) * error * parameters[OUTPUT + unit];
    for (var step_back = 0u; step_back < LENGTH; step_back++) {
        let at = (sequence * LENGTH + LENGTH - 1u - step_back) * HIDDEN + unit;
        delta = select(delta, 0.0, hidden[at] == 0.0);
        workgroupBarrier();
        shared_units[unit] = delta;
        deltas[at] = delta;
        workgroupBarrier();
        delta = 0.0;
        for (var j = 0u; j < HIDDEN; j++) {
            delta += row[j] * shared_units[j];
        }
    }
}
