// Trains a small network in plain WebGPU, with hand-written kernels, once without clipping and once with it.
//
//     node examples/train.js          under Node, with npm's `webgpu`
//     examples/train.html             in a browser; any static server can serve the folder of the package
//
// The network learns sin(x). One label in every 25th batch is ten thousand times too large. Without clipping, the gradient of such
// a batch throws the weights far off.
import { Clipper } from "gradclip";

const HIDDEN = 32;
const BATCH = 64;
const STEPS = 300;
const RATE = 0.05;

const kernels = /* wgsl */ `
const HIDDEN = ${HIDDEN}u;
const BATCH = ${BATCH}u;

@group(0) @binding(0) var<storage, read> inputs: array<f32>;
@group(0) @binding(1) var<storage, read> labels: array<f32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;      // w1, b1, w2 of each hidden unit
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> hidden: array<f32>;
@group(0) @binding(5) var<storage, read_write> errors: array<f32>;
@group(0) @binding(6) var<storage, read_write> weight_grads: array<f32>;
@group(0) @binding(7) var<storage, read_write> bias_grad: array<f32>;

// One invocation for each sample of the batch.
@compute @workgroup_size(BATCH) fn forward(@builtin(global_invocation_id) id: vec3<u32>) {
    var output = bias[0];
    for (var unit = 0u; unit < HIDDEN; unit++) {
        let h = tanh(clamp(weights[3u * unit] * inputs[id.x] + weights[3u * unit + 1u], -20.0, 20.0));
        hidden[id.x * HIDDEN + unit] = h;
        output += weights[3u * unit + 2u] * h;
    }
    errors[id.x] = output - labels[id.x];
}

// One invocation for each hidden unit, and the first one for the bias too.
@compute @workgroup_size(HIDDEN) fn backward(@builtin(global_invocation_id) id: vec3<u32>) {
    var grads = vec3<f32>();
    var sum = 0.0;
    for (var sample = 0u; sample < BATCH; sample++) {
        let error = 2.0 * errors[sample] / f32(BATCH);
        let h = hidden[sample * HIDDEN + id.x];
        let inner = error * weights[3u * id.x + 2u] * (1.0 - h * h);
        grads += vec3(inner * inputs[sample], inner, error * h);
        sum += error;
    }
    for (var k = 0u; k < 3u; k++) { weight_grads[3u * id.x + k] = grads[k]; }
    if (id.x == 0u) { bias_grad[0] = sum; }
}

@compute @workgroup_size(HIDDEN) fn descend(@builtin(global_invocation_id) id: vec3<u32>) {
    for (var k = 0u; k < 3u; k++) { weights[3u * id.x + k] -= ${RATE} * weight_grads[3u * id.x + k]; }
    if (id.x == 0u) { bias[0] -= ${RATE} * bias_grad[0]; }
}
`;

/** Trains the network. Returns the loss and the gradient norm of every step. */
export async function train(device, { clips }) {
  const random = generator(7);
  const storage = (length) =>
    device.createBuffer({ size: 4 * length, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC });
  const [inputs, labels, hidden, errors] = [BATCH, BATCH, BATCH * HIDDEN, BATCH].map(storage);
  const [weights, bias, weightGrads, biasGrad] = [3 * HIDDEN, 1, 3 * HIDDEN, 1].map(storage);
  device.queue.writeBuffer(weights, 0, Float32Array.from({ length: 3 * HIDDEN }, () => random() - 0.5));

  const module = device.createShaderModule({ code: kernels });
  const layout = device.createBindGroupLayout({
    entries: Array.from({ length: 8 }, (_, binding) => ({
      binding,
      visibility: GPUShaderStage.COMPUTE,
      buffer: { type: binding < 2 ? "read-only-storage" : "storage" },
    })),
  });
  const pipelineLayout = device.createPipelineLayout({ bindGroupLayouts: [layout] });
  const [forward, backward, descend] = await Promise.all(
    ["forward", "backward", "descend"].map((entryPoint) =>
      device.createComputePipelineAsync({ layout: pipelineLayout, compute: { module, entryPoint } }),
    ),
  );
  const bound = [inputs, labels, weights, bias, hidden, errors, weightGrads, biasGrad];
  const bindGroup = device.createBindGroup({
    layout,
    entries: bound.map((buffer, binding) => ({ binding, resource: { buffer } })),
  });
  const run = (encoder, pipeline) => {
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, bindGroup);
    pass.dispatchWorkgroups(1);
    pass.end();
  };

  const clipper = await Clipper.create(device);
  const gradients = [{ buffer: weightGrads, label: "weights" }, { buffer: biasGrad, label: "bias" }];
  const plan = await clipper.prepare(gradients, { maxNorm: 1, coefficientOnly: !clips });

  const history = [];
  for (let step = 0; step < STEPS; step++) {
    const batch = Float32Array.from({ length: BATCH }, () => 6 * random() - 3);
    const wrong = step % 25 === 24;
    device.queue.writeBuffer(inputs, 0, batch);
    device.queue.writeBuffer(labels, 0, batch.map((x, index) => Math.sin(x) * (wrong && index === 0 ? 10_000 : 1)));
    const encoder = device.createCommandEncoder();
    run(encoder, forward);
    run(encoder, backward);
    plan.encode(encoder);
    const ticket = plan.readBack(encoder);
    run(encoder, descend);
    const loss = readLoss(device, encoder, errors);
    device.queue.submit([encoder.finish()]);
    history.push({ loss: await loss(), norm: (await ticket).totalNorm, wrong });
  }
  plan.destroy();
  return history;
}

/** Encodes a copy of the errors; returns a function that reads their mean square. */
function readLoss(device, encoder, errors) {
  const staging = device.createBuffer({ size: errors.size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  encoder.copyBufferToBuffer(errors, 0, staging, 0, errors.size);
  return async () => {
    await staging.mapAsync(GPUMapMode.READ);
    const loss = new Float32Array(staging.getMappedRange()).reduce((sum, x) => sum + x * x, 0) / BATCH;
    staging.destroy();
    return loss;
  };
}

/** Random numbers in [0, 1), the same at every run. */
function generator(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Trains both, and reports the losses just before each wrong label, whose own loss says little, and the norm at it. */
export async function compare(device, report) {
  const without = await train(device, { clips: false });
  const clipped = await train(device, { clips: true });
  report("step   loss without clipping   with clipping   gradient norm at the wrong label");
  for (let step = 23; step < STEPS; step += 25) {
    const columns = [without[step].loss, clipped[step].loss, clipped[step + 1].norm].map((x) => x.toPrecision(4));
    report(`${String(step + 1).padStart(4)}   ${columns[0].padStart(21)}   ${columns[1].padStart(13)}   ${columns[2].padStart(13)}`);
  }
  return { without, clipped };
}

if (globalThis.process?.argv?.[1] === import.meta.filename && import.meta.filename) {
  const { requestDevice } = await import("../test/support/gpu.js");
  await compare(await requestDevice(), console.log);
  process.exit(0);
}
