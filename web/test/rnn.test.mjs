// The recurrent network: gradients against finite differences in f64, and the kernels against the CPU path, in Dawn.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { openDevice } from "./dawn.mjs";
import { CpuRun, lossAndGradient } from "../../target/web/rnn/cpu.js";
import { GpuRun, RnnKernels } from "../../target/web/rnn/gpu.js";
import { BATCH, BASELINE, DEFAULTS, LENGTH, PARAMETERS, TENSORS, batch, initialParameters } from "../../target/web/rnn/model.js";

/** Clips in plain f64: the tests of this file need no wasm. */
function clip(gradient, maxNorm) {
  const totalNorm = Math.hypot(...gradient);
  const clipCoef = Math.min(1, maxNorm / (totalNorm + 1e-6));
  gradient.forEach((value, i) => (gradient[i] = value * clipCoef));
  return { totalNorm, clipCoef };
}

/** No clip: the gradients stay as the kernels write them. */
function noClip(device) {
  const recordBuffer = device.createBuffer({ size: 40, usage: GPUBufferUsage.STORAGE });
  return async () => ({ encodeInto() {}, recordBuffer, setMaxNorms() {}, destroy: () => recordBuffer.destroy() });
}

test("a batch marks two values in different halves, and its target is their sum", () => {
  const { values, marks, targets } = batch(7, 3);
  for (let sequence = 0; sequence < BATCH; sequence++) {
    const at = [...marks.subarray(sequence * LENGTH, (sequence + 1) * LENGTH).entries()].filter(([, mark]) => mark);
    assert.equal(at.length, 2);
    const [first, second] = at.map(([time]) => time);
    assert.ok(first < LENGTH / 2 && second >= LENGTH / 2);
    const sum = values[sequence * LENGTH + first] + values[sequence * LENGTH + second];
    assert.equal(targets[sequence], Math.fround(sum));
  }
  assert.ok(values.every((value) => value >= 0 && value < 1));
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  assert.ok(Math.abs(mean - 0.5) < 0.03, `mean ${mean}`);
  assert.notDeepEqual(batch(7, 4).values, values);
  assert.notDeepEqual(batch(8, 3).values, values);
});

test("the gradient is that of finite differences", () => {
  const parameters = Float64Array.from(initialParameters(7, 1.02));
  // Away from the kinks of the rectifier.
  for (let i = 0; i < PARAMETERS; i++) parameters[i] += 0.01 * Math.sin(i);
  const data = batch(7, 0);
  const gradient = new Float64Array(PARAMETERS);
  lossAndGradient(parameters, data, gradient);
  for (const { name, offset, length } of TENSORS) {
    for (let i = offset; i < offset + length; i += Math.max(1, length >> 3)) {
      const step = 1e-7;
      const saved = parameters[i];
      const losses = [step, -step].map((change) => {
        parameters[i] = saved + change;
        return lossAndGradient(parameters, data, null);
      });
      parameters[i] = saved;
      const difference = (losses[0] - losses[1]) / (2 * step);
      const error = Math.abs(gradient[i] - difference);
      assert.ok(error <= 1e-4 * Math.max(1, Math.abs(difference)), `${name} ${i}: ${gradient[i]}, not ${difference}`);
    }
  }
});

test("with clipping the loss falls, without it the network explodes", async () => {
  const mean = (results) => results.slice(-20).reduce((sum, { loss }) => sum + loss, 0) / 20;
  const clipped = await new CpuRun(DEFAULTS, clip).train(300);
  const unclipped = await new CpuRun({ ...DEFAULTS, maxNorm: Infinity }, clip).train(300);
  assert.ok(mean(clipped) < BASELINE / 2, `loss ${mean(clipped)} with clipping`);
  assert.ok(!(mean(unclipped) < 2 * BASELINE), `loss ${mean(unclipped)} without clipping`);
  assert.ok(Math.max(...unclipped.map(({ norm }) => norm)) > 1e4);
});

test("the kernels compute the gradient and the update of the CPU path", async () => {
  const device = await openDevice();
  const source = (name) => readFile(fileURLToPath(new URL(`../../target/web/rnn/${name}`, import.meta.url)), "utf8");
  const kernels = await RnnKernels.create(device, source);
  const settings = { ...DEFAULTS, gain: 1.02 };
  const gpu = await GpuRun.create(kernels, settings, noClip(device));
  const cpu = new CpuRun(settings, () => ({ totalNorm: 0, clipCoef: 1 }));
  const close = (given, expected, tolerance, what) => {
    const scale = Math.hypot(...expected);
    const error = Math.hypot(...given.map((value, i) => value - expected[i]));
    assert.ok(error <= tolerance * scale, `${what}: off by ${error} of ${scale}`);
  };
  for (let step = 0; step < 3; step++) {
    const before = cpu.parameters.slice();
    const expected = new Float64Array(PARAMETERS);
    lossAndGradient(before, batch(settings.seed, step), expected);
    const [given] = await gpu.train(1);
    const [wanted] = await cpu.train(1);
    assert.ok(Math.abs(given.loss - wanted.loss) <= 1e-4 * wanted.loss, `loss ${given.loss}, not ${wanted.loss}`);
    const gradients = await gpu.read("gradients");
    for (const { name, offset, length } of TENSORS) {
      const range = [offset, offset + length];
      close(gradients.subarray(...range), expected.subarray(...range), 1e-3, `step ${step}, gradient of the ${name}`);
    }
    close(await gpu.read("parameters"), cpu.parameters, 1e-4, `parameters after step ${step}`);
  }
  assert.equal((await gpu.train(5)).length, 5);
  gpu.destroy();
});
