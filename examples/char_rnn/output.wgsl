// The logits at each token position, their cross-entropy with the next token, and its gradient.
//
//   logit = head h + head_bias        loss = -log softmax(logit)[next]
//   d logit = (softmax(logit) - onehot(next)) / (LENGTH * BATCH)
//
// One invocation for each token position.

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read> parameters: array<f32>;
@group(0) @binding(2) var<storage, read> states: array<f32>;
@group(0) @binding(3) var<storage, read_write> logit_grads: array<f32>; // [LENGTH, BATCH, VOCABULARY]
@group(0) @binding(4) var<storage, read_write> losses: array<f32>;      // [LENGTH, BATCH]

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let position = id.x;
    if (position >= LENGTH * BATCH) {
        return;
    }
    let next = tokens[(position % BATCH) * (LENGTH + 1u) + position / BATCH + 1u];
    let logits_offset = position * VOCABULARY;
    let state_offset = (position + BATCH) * HIDDEN;

    var max_logit = -3e38;
    for (var v = 0u; v < VOCABULARY; v += 1u) {
        var logit = parameters[HEAD_BIAS + v];
        for (var k = 0u; k < HIDDEN; k += 1u) {
            logit += parameters[HEAD + v * HIDDEN + k] * states[state_offset + k];
        }
        logit_grads[logits_offset + v] = logit;
        max_logit = max(max_logit, logit);
    }
    var sum_exp = 0.0;
    for (var v = 0u; v < VOCABULARY; v += 1u) {
        sum_exp += exp(logit_grads[logits_offset + v] - max_logit);
    }
    losses[position] = log(sum_exp) + max_logit - logit_grads[logits_offset + next];
    for (var v = 0u; v < VOCABULARY; v += 1u) {
        let probability = exp(logit_grads[logits_offset + v] - max_logit) / sum_exp;
        logit_grads[logits_offset + v] = (probability - select(0.0, 1.0, v == next)) / f32(LENGTH * BATCH);
    }
}
