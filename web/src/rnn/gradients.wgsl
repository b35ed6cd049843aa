// One invocation sums the gradient of one parameter over all sequences and time steps.

@group(0) @binding(0) var<storage, read_write> step: u32;
@group(0) @binding(1) var<storage, read> hidden: array<f32>;
@group(0) @binding(2) var<storage, read> deltas: array<f32>;
@group(0) @binding(3) var<storage, read> inputs: array<vec2f>;
@group(0) @binding(4) var<storage, read> errors: array<f32>;
@group(0) @binding(5) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    let parameter = id.x;
    if parameter > OUTPUT_BIAS {
        return;
    }
    if parameter == 0u {
        // sequence.wgsl has read the step already, and adam.wgsl counts from 1.
        step += 1u;
    }
    var sum = 0.0;
    if parameter >= OUTPUT {
        for (var sequence = 0u; sequence < BATCH; sequence++) {
            let last = (sequence * LENGTH + LENGTH - 1u) * HIDDEN;
            var factor = 1.0;
            if parameter < OUTPUT_BIAS {
                factor = hidden[last + parameter - OUTPUT];
            }
            sum += 2.0 / f32(BATCH) * errors[sequence] * factor;
        }
        gradients[parameter] = sum;
        return;
    }
    // The unit that the parameter feeds.
    var unit = parameter % HIDDEN;
    if parameter >= RECURRENT && parameter < BIAS {
        unit = (parameter - RECURRENT) / HIDDEN;
    }
    let source = parameter % HIDDEN;
    for (var sequence = 0u; sequence < BATCH; sequence++) {
        // One chain per sequence keeps the rounding error small.
        var chain = 0.0;
        for (var time = 0u; time < LENGTH; time++) {
            let at = sequence * LENGTH + time;
            var factor = 1.0;
            if parameter < HIDDEN {
                factor = inputs[at].x;
            } else if parameter < RECURRENT {
                factor = inputs[at].y;
            } else if parameter < BIAS {
                factor = 0.0;
                if time > 0u {
                    factor = hidden[(at - 1u) * HIDDEN + source];
                }
            }
            chain += deltas[at * HIDDEN + unit] * factor;
        }
        sum += chain;
    }
    gradients[parameter] = sum;
}
