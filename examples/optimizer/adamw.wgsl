// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101). Clips each gradient element as it is loaded.
//
// One invocation for each element. `ClipRecord` and `clip_record_scaled` come from gradclip::CLIP_RECORD_WGSL.

struct Hyperparameters {
    learning_rate: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    weight_decay: f32,
    correction1: f32, // 1 - beta1^step
    correction2: f32, // 1 - beta2^step
}

@group(0) @binding(0) var<uniform> record: ClipRecord;
@group(0) @binding(1) var<uniform> hyper: Hyperparameters;
@group(0) @binding(2) var<storage, read> gradients: array<f32>;
@group(0) @binding(3) var<storage, read_write> moments: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> parameters: array<f32>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    if (i >= arrayLength(&parameters)) {
        return;
    }
    let g = clip_record_scaled(record, gradients[i]);

    let m = mix(g, moments[i].x, hyper.beta1);
    let v = mix(g * g, moments[i].y, hyper.beta2);
    moments[i] = vec2(m, v);

    let direction = (m / hyper.correction1) / (sqrt(v / hyper.correction2) + hyper.epsilon);
    parameters[i] -= hyper.learning_rate * (direction + hyper.weight_decay * parameters[i]);
}
