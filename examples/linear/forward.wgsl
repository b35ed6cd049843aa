// Forward pass: a linear layer with one output, and its mean squared error.
//
//   residual = W·x + b - target        loss = mean(residual²)

@group(0) @binding(0) var<storage, read> inputs: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> targets: array<f32>;
@group(0) @binding(2) var<storage, read> weight: vec2<f32>;
@group(0) @binding(3) var<storage, read> bias: f32;
@group(0) @binding(4) var<storage, read_write> residuals: array<f32>;
@group(0) @binding(5) var<storage, read_write> loss: f32;

// One invocation suffices for two samples.
@compute @workgroup_size(1)
fn main() {
    let samples = arrayLength(&targets);
    var sum = 0.0;
    for (var i = 0u; i < samples; i++) {
        let residual = dot(weight, inputs[i]) + bias - targets[i];
        residuals[i] = residual;
        sum += residual * residual;
    }
    loss = sum / f32(samples);
}
