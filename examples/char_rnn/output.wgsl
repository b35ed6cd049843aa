// What the network expects to come next at each place, the loss of that, and the gradient of the loss.
//
//   logit = head h + head_bias        loss = -log softmax(logit)[next]        d logit = (softmax(logit) - onehot(next)) / places
//
// An invocation a place.

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read> parameters: array<f32>;
@group(0) @binding(2) var<storage, read> states: array<f32>;
@group(0) @binding(3) var<storage, read_write> logit_grads: array<f32>; // [LENGTH, BATCH, VOCABULARY]
@group(0) @binding(4) var<storage, read_write> losses: array<f32>;      // [LENGTH, BATCH]

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let place = id.x;
    if (place >= LENGTH * BATCH) {
        return;
    }
    let next = tokens[(place % BATCH) * (LENGTH + 1u) + place / BATCH + 1u];
    let own = place * VOCABULARY;
    let state = (place + BATCH) * HIDDEN;

    var largest = -3e38;
    for (var v = 0u; v < VOCABULARY; v += 1u) {
        var logit = parameters[HEAD_BIAS + v];
        for (var k = 0u; k < HIDDEN; k += 1u) {
            logit += parameters[HEAD + v * HIDDEN + k] * states[state + k];
        }
        logit_grads[own + v] = logit;
        largest = max(largest, logit);
    }
    var sum = 0.0;
    for (var v = 0u; v < VOCABULARY; v += 1u) {
        sum += exp(logit_grads[own + v] - largest);
    }
    losses[place] = log(sum) + largest - logit_grads[own + next];
    for (var v = 0u; v < VOCABULARY; v += 1u) {
        let probability = exp(logit_grads[own + v] - largest) / sum;
        logit_grads[own + v] = (probability - select(0.0, 1.0, v == next)) / f32(LENGTH * BATCH);
    }
}
