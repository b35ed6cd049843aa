// Backward pass: the gradients of the mean squared error.
//
//   ∂loss/∂W = 2 mean(residual · x)    ∂loss/∂b = 2 mean(residual)

@group(0) @binding(0) var<storage, read> inputs: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> residuals: array<f32>;
@group(0) @binding(2) var<storage, read_write> weight_grad: vec2<f32>;
@group(0) @binding(3) var<storage, read_write> bias_grad: f32;

@compute @workgroup_size(1)
fn main() {
    let samples = arrayLength(&residuals);
    var weight_sum = vec2<f32>();
    var bias_sum = 0.0;
    for (var i = 0u; i < samples; i++) {
        weight_sum += residuals[i] * inputs[i];
        bias_sum += residuals[i];
    }
    weight_grad = 2.0 * weight_sum / f32(samples);
    bias_grad = 2.0 * bias_sum / f32(samples);
}
