// Adam (Kingma and Ba 2015), one invocation per parameter. Invocation 0 also records the results of the step.

// The first words of gradclip's record.
struct ClipRecord {
    total_norm: f32,
    clip_coef: f32,
}

struct StepResult {
    loss: f32,
    norm: f32,
    coefficient: f32,
}

@group(0) @binding(0) var<uniform> settings: Settings;
@group(0) @binding(1) var<storage, read> step: u32;
// The clipped gradients.
@group(0) @binding(2) var<storage, read> gradients: array<f32>;
@group(0) @binding(3) var<storage, read> errors: array<f32>;
@group(0) @binding(4) var<storage, read> record: ClipRecord;
// First and second moment.
@group(0) @binding(5) var<storage, read_write> moments: array<vec2f>;
@group(0) @binding(6) var<storage, read_write> parameters: array<f32>;
@group(0) @binding(7) var<storage, read_write> history: array<StepResult>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    let parameter = id.x;
    if parameter >= PARAMETERS {
        return;
    }
    let gradient = gradients[parameter];
    let decay = vec2f(ADAM_FIRST, ADAM_SECOND);
    let moment = mix(vec2f(gradient, gradient * gradient), moments[parameter], decay);
    moments[parameter] = moment;
    let unbiased = moment / (1.0 - pow(decay, vec2f(f32(step))));
    parameters[parameter] -= settings.learning_rate * unbiased.x / (sqrt(unbiased.y) + ADAM_EPSILON);
    if parameter == 0u {
        var sum = 0.0;
        for (var sequence = 0u; sequence < BATCH; sequence++) {
            sum += errors[sequence] * errors[sequence];
        }
        history[(step - 1u) % MAX_STEPS_AT_ONCE] = StepResult(sum / f32(BATCH), record.total_norm, record.clip_coef);
    }
}
