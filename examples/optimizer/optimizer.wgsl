// An optimizer step that clips each gradient as it reads it. Each invocation updates every stride-th parameter.
//
// optimizers.rs prepends gradclip's declarations of `ClipRecord` and `StepCounts`, a file of elements/ (the type of the
// gradients), and a rule: sgd.wgsl, or moments.wgsl with adam.wgsl or adamw.wgsl.

struct Hyperparameters {
    learning_rate: f32,
    weight_decay: f32,
    momentum: f32,    // SGD
    nesterov: u32,    // SGD: 1 for Nesterov's momentum, else 0
    complement1: f32, // Adam: 1 - beta1. The host subtracts in f64, because 1 - beta2 in f32 has an error of 1e-5.
    complement2: f32, // Adam: 1 - beta2
    epsilon: f32,     // Adam
    zero: u32,        // always 0: see `clipped_gradient`
}

@group(0) @binding(0) var<storage, read> record: ClipRecord;
@group(0) @binding(1) var<storage, read> step_counts: StepCounts;
@group(0) @binding(2) var<uniform> hyper: Hyperparameters;
@group(0) @binding(3) var<storage, read> gradients: array<u32>; // one or two elements in each word
@group(0) @binding(4) var<storage, read_write> parameters: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<State>;

// Without a measurement there is no coefficient, so the step is skipped.
const NO_STEP: u32 = CLIP_RECORD_SKIP | CLIP_RECORD_UNMEASURED | CLIP_RECORD_NORM_MISSING;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    if ((record.flags & NO_STEP) != 0u) {
        return;
    }
    begin_step(step_counts_taken(step_counts));
    let stride = WORKGROUP_SIZE * grid.x;
    for (var i = id.x; i < arrayLength(&parameters); i += stride) {
        update(i, clipped_gradient(i));
    }
}

// Returns gradient `i` as the scale pass would store it: multiplied by the factor, and rounded to the type of the gradients.
//
// WGSL lets a compiler fuse a product and a sum into one operation with one rounding, and reassociate products. Then the
// product with the factor would not be rounded on its own, and the step would differ from a scale pass and a step in the last
// bit. The exclusive or with a word that is known only at run time hides the product from the compiler, so it is rounded first.
// For the same reason the conversions of 16-bit elements use only integers.
fn clipped_gradient(i: u32) -> f32 {
    if ((record.flags & CLIP_RECORD_ZERO) != 0u) {
        return 0.0;
    }
    let product = clip_record_scaled(record, bitcast<f32>(element_bits(i)));
    let rounded = rounded_to_element(bitcast<u32>(product) ^ hyper.zero);
    // All NaNs become the one that the scale pass stores.
    return bitcast<f32>(select(rounded, 0x7fc00000u, (rounded & 0x7fffffffu) > 0x7f800000u));
}
