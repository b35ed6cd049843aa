// Values of the wrong kind, calls at the wrong time, and losses in the middle: under Node with Dawn, and in a page.
import assert from "node:assert/strict";
import { after, test } from "node:test";

import { Clipper, GradclipError } from "gradclip";
import { bufferOf, floatsOf, requestDevice, submit } from "./support/gpu.js";

const device = await requestDevice();
const clipper = await Clipper.create(device);

after(() => assert.deepEqual(device.errors, [], "errors that no error scope caught"));

const clip = { maxNorm: 1 };
const gradient = (values = [3, 4]) => ({ buffer: bufferOf(device, values) });

/** Checks that a call fails with an error of this kind, whose message has this text. */
async function refused(call, kind, text) {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof GradclipError, `${error?.stack ?? error}`);
    assert.equal(error.kind, kind, error.message);
    assert.ok(error.message.includes(text), error.message);
    return true;
  });
}

test("lists that are none, and objects of other classes", async () => {
  const one = gradient();
  const prepare = (gradients, options = clip) => async () => clipper.prepare(gradients, options);
  const plan = await clipper.prepare([one], clip);
  for (const [given, shown] of [[undefined, "undefined"], [null, "null"], [one, "an object"], [7n, "7n"], ["x", '"x"']]) {
    const text = `the list of gradients is ${shown}, but it must be an array`;
    await refused(prepare(given), "Option", text);
    await refused(async () => plan.rebind(given), "Option", text);
  }
  await refused(prepare(new Map([["w", one]])), "Option", "gradient 0: it is an Array, but it must be an object");
  await refused(prepare([one.buffer]), "Option", "it is a GPUBuffer, but it must be an object");
  await refused(prepare([{ buffer: new Float32Array(2) }]), "NoBuffer", "gradient 0: buffer is a Float32Array, but it must be a GPUBuffer");
  // Their contents would be ignored.
  await refused(prepare([one], new Map([["maxNorm", 1]])), "Option", "the clip is a Map, but it must be an object");
  await refused(prepare([one], { ...clip, zClip: new Number(3) }), "Option", "zClip is a Number, but it must be an object");
  await refused(prepare([one], { byValueRange: [-1, 0, 1] }), "Option", "the length of byValueRange is 3, but it must be 2");
  await refused(prepare([one], { byValueRange: [, 1] }), "Option", "low is undefined");
  // Null is a value, not the default.
  for (const field of ["dtype", "byteOffset", "length", "label", "group", "measured", "scaled", "rows", "columns", "part", "parameter", "partials"]) {
    await refused(prepare([{ ...one, [field]: null }]), "Option", `${field} is null, but it must be`);
  }
  const partials = { ...gradient(), elements: 4096, byteOffset: null };
  await refused(prepare([{ ...one, partials }]), "Option", "byteOffset is null, but it must be an integer");
  await refused(prepare([{ ...one, length: 1n }]), "Option", "length is 1n, but it must be an integer");
});

test("errors about one of several clips name its group", async () => {
  const clips = (second) => async () => clipper.prepare([gradient()], [clip, second]);
  await refused(clips({ maxNrom: 1 }), "Option", 'group 1: the clip has the unknown field "maxNrom"');
  await refused(clips({ maxNorm: "1" }), "Option", 'group 1: maxNorm is "1"');
  await refused(clips({ ...clip, byValue: 1 }), "Option", "group 1: the clip has maxNorm and byValue");
  await refused(clips({ ...clip, lossScale: 1, dynamicLossScale: {} }), "Option", "group 1: lossScale and dynamicLossScale");
  await refused(async () => clipper.prepare([gradient()], [, clip]), "Option", "group 0: the clip is undefined");
});

test("what is no encoder, no pass, no part and no source", async () => {
  const plan = await clipper.prepare([{ ...gradient(), part: 0 }], { ...clip, lossScale: 2 });
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  for (const given of [undefined, null, "encoder", {}, pass]) {
    for (const method of ["encode", "encodeNorm", "encodeScale", "encodeRecord", "readBack", "readBackAll"]) {
      await refused(async () => plan[method](given), "NoGpuObject", "the encoder is");
    }
    await refused(async () => plan.encodePart(given, 0), "NoGpuObject", "but it must be a GPUCommandEncoder");
    await refused(async () => plan.copyMaxNorm(given, 0, gradient()), "NoGpuObject", "but it must be a GPUCommandEncoder");
  }
  pass.end();
  for (const given of [undefined, null, {}, encoder]) {
    for (const method of ["encodeInto", "encodeNormInto", "encodeScaleInto", "encodeRecordInto"]) {
      await refused(async () => plan[method](given), "NoGpuObject", "but it must be a GPUComputePassEncoder");
    }
  }
  for (const part of ["0", "length", -1, 0.5, 0n, Symbol("part"), [0]]) {
    await refused(async () => plan.encodePart(encoder, part), "Option", "the part is");
  }
  const copy = (source) => async () => plan.copyMaxNorm(encoder, 0, source);
  const { buffer } = gradient();
  await refused(copy(undefined), "Option", "the source is undefined, but it must be an object");
  await refused(copy(buffer), "Option", "the source is a GPUBuffer, but it must be an object");
  await refused(copy({}), "NoGpuObject", "the buffer of the source is undefined, but it must be a GPUBuffer");
  await refused(copy({ buffer, offset: 4 }), "Option", 'the source has the unknown field "offset"; allowed: buffer or byteOffset');
  for (const byteOffset of ["0", 0n, -4, NaN, true, null]) await refused(copy({ buffer, byteOffset }), "Option", "byteOffset is");
  await refused(copy({ buffer, byteOffset: 8 }), "CopySource", "4 bytes at offset 8 cannot be copied from a buffer of 8 bytes");
});

test("saved state with counts that are none", async () => {
  const options = { ...clip, countSteps: true, zClip: {} };
  const plan = await clipper.prepare([gradient()], options);
  const counts = { steps: 5, clipped: 0, nonFinite: 0, skipped: 0, consecutiveSkips: 0, largestNorm: 2.5 };
  for (const given of [-1, 0.5, NaN, 2 ** 32]) {
    for (const name of ["steps", "clipped", "nonFinite", "skipped", "consecutiveSkips"]) {
      await refused(async () => plan.setStepCounts([{ ...counts, [name]: given }]), "Option", `${name} is ${given}, but it must be an integer`);
    }
    await refused(async () => plan.setHistories([{ steps: given, mean: 1.5, deviation: 0.5 }]), "Option", `steps is ${given}`);
  }
  plan.setStepCounts([counts]);
  plan.setHistories([{ steps: 5, mean: 1.5, deviation: 0.5 }]);
  const [read, histories] = submit(device, (encoder) => [plan.readBackStepCounts(encoder), plan.readBackHistories(encoder)]);
  assert.deepEqual(await read, [counts]);
  assert.deepEqual(await histories, [{ steps: 5, mean: 1.5, deviation: 0.5 }]);
});

test("a clipper of something that is no device, with unknown options, and limits of no adapter", async () => {
  await refused(async () => Clipper.create(Promise.resolve(device)), "NoDevice", "needs a GPUDevice, but was given a Promise");
  await refused(async () => Clipper.create(device, { wasmUrl: "planner.wasm" }), "Option", 'has the unknown field "wasmUrl"; allowed: wasm');
  await refused(async () => Clipper.create(device, null), "Option", "the second argument of Clipper.create is null");
  for (const given of [undefined, null, {}, Promise.resolve()]) {
    await refused(async () => Clipper.recommendedLimits(given), "NoGpuObject", "the adapter is");
  }
});

test("a device that is lost while a plan is made", async () => {
  // Sooner or later, up to some tasks.
  for (const turns of [0, 1, 2, 3, 5, 8, 13, "task"]) {
    const lost = await requestDevice();
    const its = await Clipper.create(lost);
    const list = [{ buffer: bufferOf(lost, [3, 4]) }];
    const prepared = its.prepare(list, { ...clip, tensorStats: true });
    prepared.catch(() => {});
    if (turns === "task") await new Promise((resolve) => setTimeout(resolve));
    else for (let turn = 0; turn < turns; turn++) await null;
    lost.destroy();
    await refused(async () => prepared, "DeviceLost", "lost");
    assert.deepEqual(lost.errors, []);
  }
});

test("a rebind of a plan whose device is lost, and of one that is destroyed meanwhile", async () => {
  const lost = await requestDevice();
  const its = await Clipper.create(lost);
  const list = [{ buffer: bufferOf(lost, [3, 4]) }];
  const plan = await its.prepare(list, { byValue: 1 });
  const meanwhile = plan.rebind(list);
  lost.destroy();
  await refused(async () => meanwhile, "DeviceLost", "lost");
  await refused(async () => plan.rebind(list), "DeviceLost", "lost");

  const good = [gradient()];
  const destroyed = await clipper.prepare(good, clip);
  const rebound = destroyed.rebind(good);
  destroyed.destroy();
  await refused(async () => rebound, "Destroyed", "the plan was destroyed");
  assert.deepEqual(await floatsOf(device, good[0].buffer), [3, 4]);
});

test("a device that is lost while a ticket waits", async () => {
  const lost = await requestDevice();
  const its = await Clipper.create(lost);
  const plan = await its.prepare([{ buffer: bufferOf(lost, [3, 4]) }], { ...clip, tensorStats: true });
  const tickets = [0, 1].map(() => submit(lost, (encoder) => (plan.encode(encoder), plan.readBack(encoder))));
  const waiting = tickets.map((ticket) => ticket.then());
  lost.destroy();
  for (const ticket of waiting) await refused(async () => ticket, "DeviceLost", "the device was lost or destroyed");
});

test("two rebinds at once, of which one fails", async () => {
  const plan = await clipper.prepare([gradient()], clip);
  const [moved, destroyed] = [gradient([6, 8]), gradient()];
  destroyed.buffer.destroy();
  const [first, second] = await Promise.allSettled([plan.rebind([destroyed]), plan.rebind([moved])]);
  assert.deepEqual([first.status, first.reason.kind, second.status], ["rejected", "BufferRejected", "fulfilled"]);
  const ticket = submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)));
  assert.equal((await ticket).totalNorm, 10);
});

test("the package needs no globals of WebGPU", async () => {
  const names = ["GPUBufferUsage", "GPUShaderStage", "GPUMapMode"];
  const kept = names.map((name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)]);
  const list = [gradient()];
  const destroyed = gradient();
  destroyed.buffer.destroy();
  for (const name of names) delete globalThis[name];
  try {
    const its = await Clipper.create(device);
    const plan = await its.prepare(list, clip);
    const ticket = submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)));
    assert.equal((await ticket).totalNorm, 5);
    await refused(async () => its.prepare([destroyed], clip), "BufferRejected", "gradient 0");
  } finally {
    for (const [name, descriptor] of kept) Object.defineProperty(globalThis, name, descriptor);
  }
});
