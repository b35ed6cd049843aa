// What the package does: under Node with Dawn, and in a page.
import assert from "node:assert/strict";
import { after, test } from "node:test";

import { Clipper } from "gradclip";
import { bufferOf, bytesOf, floatsOf, requestAdapter, requestDevice, submit } from "./support/gpu.js";

const device = await requestDevice();
const clipper = await Clipper.create(device);

after(() => assert.deepEqual(device.errors, [], "errors that no error scope caught"));

const buffers = (...lists) => lists.map((list) => bufferOf(device, list));
const gradients = (...lists) => buffers(...lists).map((buffer) => ({ buffer }));
const values = (list) => Promise.all(list.map(({ buffer }) => floatsOf(device, buffer)));
const isNear = (given, wanted) =>
  given.length === wanted.length && given.every((x, i) => Math.abs(x - wanted[i]) <= 1e-6 * Math.abs(wanted[i]));

async function clipped(list, clip) {
  const plan = await clipper.prepare(list, clip);
  const ticket = submit(device, (encoder) => {
    plan.encode(encoder);
    return plan.readBackAll(encoder);
  });
  return ticket;
}

test("a clip by global norm scales all gradients by one factor", async () => {
  const list = gradients([3, 0, 0, 4], [12]);
  const [record] = await clipped(list, { maxNorm: 1 });
  assert.equal(record.totalNorm, 13);
  assert.equal(record.clipCoef, Math.fround(1 / Math.fround(13 + 1e-6)));
  assert.equal(record.factor, record.clipCoef);
  assert.equal(record.maxMagnitude, 12);
  assert.deepEqual([record.clipped, record.nonFinite, record.skip, record.zeroed], [true, false, false, false]);
  assert.equal(record.firstNonFinite, undefined);
  const [first, second] = await values(list);
  assert.ok(isNear(first, [3 / 13, 0, 0, 4 / 13]) && isNear(second, [12 / 13]), `${first}, ${second}`);
});

test("the norm of more partials than one round of a column takes", async () => {
  const ones = new Float32Array(64 * 5000).fill(1);
  for (const count of [2048, 2049, 2100, 4097, 5000]) {
    const arena = bufferOf(device, ones);
    const list = Array.from({ length: count }, (_, index) => ({ buffer: arena, byteOffset: 256 * index, length: 64 }));
    const [record] = await clipped(list, { maxNorm: 1, coefficientOnly: true });
    assert.equal(record.totalNorm, Math.fround(Math.sqrt(64 * count)), `${count} gradients`);
    arena.destroy();
  }
});

test("gradients within the limit stay as they are", async () => {
  const list = gradients([3, 0, 0, 4], [12]);
  const [record] = await clipped(list, { maxNorm: 14 });
  assert.deepEqual([record.clipCoef, record.clipped], [1, false]);
  assert.deepEqual(await values(list), [[3, 0, 0, 4], [12]]);
});

test("a step of many buffers, ranges and thousands of elements", async () => {
  const ones = new Float32Array(10_000).fill(1);
  const arena = bufferOf(device, ones);
  const list = [
    { buffer: arena, byteOffset: 400, length: 900 },
    { buffer: arena, byteOffset: 4004, length: 7001 },
    ...Array.from({ length: 20 }, () => ({ buffer: bufferOf(device, ones) })),
  ];
  const [record] = await clipped(list, { maxNorm: 1 });
  assert.equal(record.totalNorm, Math.fround(Math.sqrt(900 + 7001 + 20 * 10_000)));
  const after = await floatsOf(device, arena);
  const touched = after.filter((x) => x !== 1).length;
  assert.equal(touched, 900 + 7001);
  assert.deepEqual([after[99], after[100] < 1, after[999] < 1, after[1000], after[1001] < 1, after[8002]], [1, true, true, 1, true, 1]);
});

test("norms of every kind", async () => {
  const norm = async (normType) => {
    const clip = { maxNorm: 1, normType, coefficientOnly: true };
    return (await clipped(gradients([3, -4], [12]), clip))[0].totalNorm;
  };
  assert.deepEqual([await norm(1), await norm(2), await norm(Infinity), await norm(0)], [19, 13, 12, 2]);
  assert.ok(Math.abs((await norm(3)) - Math.cbrt(27 + 64 + 1728)) < 1e-3);
});

test("f16 and bf16 need no feature of the device", async () => {
  // 3, 4 and 12.
  const half = { buffer: bufferOf(device, new Uint16Array([0x4200, 0x4400])), dtype: "f16" };
  const brain = { buffer: bufferOf(device, new Uint16Array([0x4140, 0x4140])), dtype: "bf16", length: 1 };
  const [record] = await clipped([half, brain], { maxNorm: 6.5, epsilon: "none" });
  assert.deepEqual([record.totalNorm, record.clipCoef], [13, 0.5]);
  const words = async ({ buffer }) => [...new Uint16Array(await bytesOf(device, buffer))];
  assert.deepEqual(await words(half), [0x3e00, 0x4000]);
  assert.deepEqual(await words(brain), [0x40c0, 0x4140]);
});

test("each gradient, each row and each column on its own", async () => {
  const list = gradients([6, 8], [0.25]);
  const records = await clipped(list, { byNorm: 5, epsilon: 0 });
  assert.deepEqual(records.map(({ totalNorm }) => totalNorm), [10, 0.25]);
  assert.deepEqual(await values(list), [[3, 4], [0.25]]);

  const matrix = [30, 40, 0.5, 0];
  const rows = gradients(matrix).map((gradient) => ({ ...gradient, rows: 2 }));
  assert.deepEqual((await clipped(rows, { byNorm: 5, epsilon: 0 })).map(({ totalNorm }) => totalNorm), [50, 0.5]);
  // The columns [3, 4] and [0.5, 0].
  const columns = gradients([3, 0.5, 4, 0]).map((gradient) => ({ ...gradient, columns: 2 }));
  assert.deepEqual((await clipped(columns, { byNorm: 2.5, epsilon: 0 })).map(({ totalNorm }) => totalNorm), [5, 0.5]);
  assert.deepEqual(await values(columns), [[1.5, 0.5, 2, 0]]);
});

test("by RMS, by value and by a range", async () => {
  const rms = gradients(new Array(9).fill(4));
  await clipped(rms, { byRms: 1, normType: 2 });
  assert.deepEqual(await values(rms), [new Array(9).fill(1)]);

  const list = gradients([0.25 * 1024, -3 * 1024, NaN]);
  const plan = await clipper.prepare(list, { byValue: 1, lossScale: 1024 });
  assert.deepEqual([plan.records, plan.recordBuffer], [0, undefined]);
  submit(device, (encoder) => plan.encode(encoder));
  assert.deepEqual(await values(list), [[0.25, -1, NaN]]);

  const range = gradients([-2, 0.5, 2]);
  const between = await clipper.prepare(range, { byValueRange: [-1, 0] });
  submit(device, (encoder) => between.encode(encoder));
  assert.deepEqual(await values(range), [[-1, 0, 0]]);
});

test("adaptive gradient clipping reads the parameter", async () => {
  const [gradient, weight] = buffers([0.3, 0.4, 0.3, 0.4], [3, 4, 0, 0]);
  const list = [{ buffer: gradient, rows: 2, parameter: { buffer: weight } }];
  const records = await clipped(list, { byParameterNorm: { clipping: 0.01, floor: 1e-3 } });
  assert.equal(records.length, 2);
  const after = await floatsOf(device, gradient);
  assert.ok(Math.abs(after[1] - 0.04) < 1e-6 && Math.abs(after[3] - 8e-6) < 1e-9, `${after}`);
});

test("a clip that needs no parameters and no partials ignores them", async () => {
  const list = gradients([6, 8], [0.25]).map((gradient) => ({
    ...gradient,
    parameter: { buffer: bufferOf(device, new Array(gradient.buffer.size / 4).fill(1)) },
    partials: { buffer: bufferOf(device, [0, 0, 0, 0]), elements: 1 },
  }));
  const plan = await clipper.prepare(list, { byValue: 1 });
  submit(device, (encoder) => plan.encode(encoder));
  assert.deepEqual(await values(list), [[1, 1], [0.25]]);
  const measured = list.map(({ partials, ...rest }) => rest);
  assert.deepEqual((await clipped(measured, { byNorm: 1 })).map(({ totalNorm }) => totalNorm), [Math.fround(Math.SQRT2), 0.25]);
});

test("groups have their own limits and records", async () => {
  const list = gradients([3, 4], [6, 8]).map((gradient, group) => ({ ...gradient, group }));
  const records = await clipped(list, [{ maxNorm: 5, epsilon: 0 }, { maxNorm: 1, epsilon: 0 }]);
  assert.deepEqual(records.map(({ totalNorm, clipCoef }) => [totalNorm, clipCoef]), [[5, 1], [10, Math.fround(0.1)]]);
  assert.deepEqual((await values(list))[0], [3, 4]);
});

test("gradients that are not measured, and that are not scaled", async () => {
  const [one, two] = gradients([3, 4], [100]);
  const [record] = await clipped([{ ...one, scaled: false }, { ...two, measured: false }], { maxNorm: 2.5, epsilon: 0 });
  assert.deepEqual([record.totalNorm, record.clipCoef], [5, 0.5]);
  assert.deepEqual(await values([one, two]), [[3, 4], [50]]);
});

test("parts are measured one by one, in any order", async () => {
  const [body, head] = gradients([3, 4], [12]);
  const plan = await clipper.prepare([{ ...body, part: 1 }, { ...head, part: 0 }], { maxNorm: 6.5, epsilon: 0 });
  assert.equal(plan.parts, 2);
  const step = (parts) =>
    submit(device, (encoder) => {
      for (const part of parts) plan.encodePart(encoder, part);
      plan.encodeRecord(encoder);
      plan.encodeScale(encoder);
      return plan.readBack(encoder);
    });
  assert.equal((await step([1, 0])).totalNorm, 13);
  assert.deepEqual(await values([body, head]), [[1.5, 2], [6]]);
  await assert.rejects(async () => step([1]), { kind: "PartMissing", gradient: { index: 1 } });
  assert.deepEqual(await values([body, head]), [[1.5, 2], [6]]);
});

test("a pass of the caller takes every dispatch", async () => {
  const list = gradients([3, 4]);
  const plan = await clipper.prepare(list, { maxNorm: 2.5, epsilon: 0 });
  const inPass = (record) =>
    submit(device, (encoder) => {
      const pass = encoder.beginComputePass();
      record(pass);
      pass.end();
      return plan.readBack(encoder);
    });
  assert.equal((await inPass((pass) => plan.encodeInto(pass))).totalNorm, 5);
  const halves = (pass) => [plan.encodeNormInto(pass), plan.encodeScaleInto(pass)];
  assert.equal((await inPass(halves)).totalNorm, 2.5);
  assert.deepEqual(await values(list), [[1.5, 2]]);
});

test("policies for NaN and infinity, on the GPU", async () => {
  const after = async (nonFinite) => {
    const list = gradients([3, 4], [Infinity]);
    const [record] = await clipped(list, { maxNorm: 1, ...(nonFinite && { nonFinite }) });
    assert.deepEqual([record.nonFinite, record.firstNonFinite], [true, 1]);
    return [record.skip, record.zeroed, await values(list)];
  };
  assert.deepEqual(await after(), [false, false, [[0, 0], [NaN]]]);
  assert.deepEqual(await after("skip"), [true, false, [[3, 4], [Infinity]]]);
  assert.deepEqual(await after("zero"), [false, true, [[0, 0], [0]]]);
  assert.deepEqual(await after("poison"), [false, false, [[NaN, NaN], [NaN]]]);
});

test("the coefficient alone, for an optimizer that binds the record", async () => {
  const list = gradients([3, 4]);
  const plan = await clipper.prepare(list, { maxNorm: 2.5, epsilon: 0, coefficientOnly: true });
  submit(device, (encoder) => plan.encode(encoder));
  assert.deepEqual(await values(list), [[3, 4]]);
  const words = await bytesOf(device, plan.recordBuffer);
  assert.deepEqual([...new Float32Array(words, 0, 3)], [5, 0.5, 0.5]);
  submit(device, (encoder) => plan.encodeScale(encoder));
  assert.deepEqual(await values(list), [[1.5, 2]]);
});

test("statistics of each gradient, and counts of steps", async () => {
  const list = gradients([3, 4, 0], [NaN, 2]);
  const plan = await clipper.prepare(list, { maxNorm: 1, nonFinite: "skip", tensorStats: true, countSteps: true });
  const [stats, counts] = submit(device, (encoder) => {
    plan.encode(encoder);
    plan.encode(encoder);
    return [plan.readBackTensorStats(encoder), plan.readBackStepCounts(encoder)];
  });
  assert.deepEqual(await stats, [
    { norm: 5, maxMagnitude: 4, nonFinite: 0, zeros: 1 },
    { norm: NaN, maxMagnitude: NaN, nonFinite: 1, zeros: 0 },
  ]);
  const zero = { consecutiveSkips: 0, largestNorm: 0 };
  assert.deepEqual(await counts, [{ steps: 2, clipped: 2, nonFinite: 2, skipped: 2, ...zero }]);
  assert.equal(plan.tensorStatsBuffer.size, 2 * 16 + 12);
  plan.setStepCounts([{ steps: 7, clipped: 1, nonFinite: 2, skipped: 3, consecutiveSkips: 4, largestNorm: 1.5 }]);
  const restored = submit(device, (encoder) => plan.readBackStepCounts(encoder));
  assert.deepEqual((await restored)[0], { steps: 7, clipped: 1, nonFinite: 2, skipped: 3, consecutiveSkips: 4, largestNorm: 1.5 });
});

test("limits and loss scales change between steps", async () => {
  const list = gradients([3, 4]);
  const plan = await clipper.prepare(list, { maxNorm: 1, epsilon: 0, lossScale: 2, coefficientOnly: true });
  const step = () => submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)));
  assert.deepEqual([(await step()).totalNorm, (await step()).clipCoef], [2.5, Math.fround(0.4)]);
  plan.setMaxNorms([Infinity]);
  plan.setLossScale(0.5);
  const record = await step();
  assert.deepEqual([record.totalNorm, record.clipCoef, record.factor], [10, 1, 2]);
  const numbers = bufferOf(device, [5, 1]);
  const copied = submit(device, (encoder) => {
    plan.copyMaxNorm(encoder, 0, { buffer: numbers });
    plan.copyInverseLossScale(encoder, { buffer: numbers, byteOffset: 4 });
    plan.encode(encoder);
    return plan.readBack(encoder);
  });
  assert.deepEqual([(await copied).totalNorm, (await copied).clipCoef], [5, 1]);
});

test("a dynamic loss scale follows its rule without the host", async () => {
  const list = gradients([Infinity]);
  const plan = await clipper.prepare(list, { maxNorm: 1, dynamicLossScale: { scale: 1024, interval: 1 } });
  const [record, scale] = submit(device, (encoder) => {
    plan.encode(encoder);
    return [plan.readBack(encoder), plan.readBackLossScale(encoder)];
  });
  assert.equal((await record).skip, true);
  assert.deepEqual(await scale, { scale: 512, growth: 2, backoff: 0.5, floor: 2 ** -126, interval: 1, goodSteps: 0 });
  assert.equal(new Float32Array(await bytesOf(device, plan.lossScaleBuffer))[0], 512);
  plan.setDynamicLossScale({ scale: 64 });
  const restored = submit(device, (encoder) => plan.readBackLossScale(encoder));
  assert.deepEqual([(await restored).scale, (await restored).interval], [64, 2000]);
});

test("limits that follow past norms, and their state", async () => {
  const list = gradients([2]);
  const clip = { maxNorm: Infinity, epsilon: "none", coefficientOnly: true };
  const auto = await clipper.prepare(list, { ...clip, autoClip: { percentile: 50, window: 100 } });
  auto.setNormWindows([{ norms: [1, 1, 1] }]);
  const [record, windows] = submit(device, (encoder) => {
    auto.encode(encoder);
    return [auto.readBack(encoder), auto.readBackNormWindows(encoder)];
  });
  assert.equal((await record).clipCoef, 0.5);
  assert.deepEqual(await windows, [{ norms: [1, 1, 1, 2] }]);

  const z = await clipper.prepare(list, { ...clip, zClip: { warmUp: 10 } });
  z.setHistories([{ steps: 5, mean: 1, deviation: 0 }]);
  const [second, histories] = submit(device, (encoder) => {
    z.encode(encoder);
    return [z.readBack(encoder), z.readBackHistories(encoder)];
  });
  assert.equal((await second).clipped, false, "not before the warm-up is over");
  assert.equal((await histories)[0].steps, 6);
});

test("a norm that the caller supplies", async () => {
  const list = gradients([3, 4]);
  const plan = await clipper.prepare(list, { bySuppliedNorm: 5, epsilon: 0 });
  const step = (before) =>
    submit(device, (encoder) => {
      before?.(encoder);
      plan.encode(encoder);
      return plan.readBack(encoder);
    });
  await assert.rejects(async () => step(), { kind: "NormNotSupplied" });
  plan.supplyNorm(10);
  assert.equal((await step()).clipCoef, 0.5);
  const norm = bufferOf(device, [20]);
  assert.equal((await step((encoder) => plan.copyNorm(encoder, { buffer: norm }))).clipCoef, 0.25);
  assert.deepEqual(await values(list), [[0.375, 0.5]]);
});

test("steps above a limit are skipped", async () => {
  const list = gradients([64]);
  const plan = await clipper.prepare(list, { maxNorm: 1, skipAbove: 100, maxConsecutiveSkips: 1 });
  const step = () => submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)));
  device.queue.writeBuffer(list[0].buffer, 0, new Float32Array([1e6]));
  assert.deepEqual([(await step()).skip, (await step()).skip], [true, false]);
});

test("a rebound plan keeps its state", async () => {
  const plan = await clipper.prepare(gradients([3, 4]), { maxNorm: 1, countSteps: true });
  const { recordBuffer } = plan;
  plan.setMaxNorms([2]);
  const step = () => submit(device, (encoder) => (plan.encode(encoder), [plan.readBack(encoder), plan.readBackStepCounts(encoder)]));
  assert.equal((await step()[0]).totalNorm, 5);
  const moved = gradients([6, 8]);
  await plan.rebind(moved);
  const [record, counts] = step();
  assert.deepEqual([(await record).totalNorm, (await counts)[0].steps], [10, 2]);
  assert.equal(plan.recordBuffer, recordBuffer);
  assert.ok(isNear((await values(moved))[0], [1.2, 1.6]));
});

test("tickets may wait, and many may be in flight", async () => {
  const [gradient] = gradients([4]);
  const plan = await clipper.prepare([gradient], { maxNorm: Infinity });
  const tickets = [];
  for (const x of [1, 2, 3, 4, 5]) {
    device.queue.writeBuffer(gradient.buffer, 0, new Float32Array([x]));
    tickets.push(submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder))));
  }
  assert.deepEqual((await Promise.all(tickets)).map(({ totalNorm }) => totalNorm), [1, 2, 3, 4, 5]);
  // A staging buffer that was used before is used again.
  for (const x of [6, 7, 8]) {
    device.queue.writeBuffer(gradient.buffer, 0, new Float32Array([x]));
    assert.equal((await submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)))).totalNorm, x);
  }
});

test("no gradients, and empty ones", async () => {
  assert.equal((await clipped([], { maxNorm: 1 }))[0].totalNorm, 0);
  assert.deepEqual(await clipped([], { byNorm: 1 }), []);
  const list = [{ ...gradients([1])[0], length: 0 }, ...gradients([3, 4])];
  assert.equal((await clipped(list, { maxNorm: 1 }))[0].totalNorm, 5);
});

test("recommended limits open a device that needs fewer dispatches", async () => {
  const adapter = await requestAdapter();
  const wide = await requestDevice({ requiredLimits: Clipper.recommendedLimits(adapter) });
  assert.ok(wide.limits.maxStorageBuffersPerShaderStage >= device.limits.maxStorageBuffersPerShaderStage);
  const list = (on) => Array.from({ length: 30 }, () => ({ buffer: bufferOf(on, [1]) }));
  const few = await (await Clipper.create(wide)).prepare(list(wide), { maxNorm: 1 });
  const many = await clipper.prepare(list(device), { maxNorm: 1 });
  assert.ok(few.dispatches <= many.dispatches, `${few.dispatches} and ${many.dispatches}`);
  const ticket = submit(wide, (encoder) => (few.encode(encoder), few.readBack(encoder)));
  assert.equal((await ticket).totalNorm, Math.fround(Math.sqrt(30)));
});
