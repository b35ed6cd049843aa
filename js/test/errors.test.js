// What the package refuses, and what it says: under Node with Dawn, and in a page.
import assert from "node:assert/strict";
import { after, test } from "node:test";

import { Clipper, GradclipError } from "gradclip";
import { bufferOf, floatsOf, requestDevice, submit } from "./support/gpu.js";

const device = await requestDevice();
const clipper = await Clipper.create(device);

after(() => assert.deepEqual(device.errors, [], "errors that no error scope caught"));

const clip = { maxNorm: 1 };
const gradient = (values = [3, 4]) => ({ buffer: bufferOf(device, values) });

/** Checks that a call fails with an error of this kind and these details, whose message has this text. */
async function refused(call, kind, text, details = {}) {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof GradclipError, `${error?.stack ?? error}`);
    assert.equal(error.kind, kind, error.message);
    assert.ok(error.message.includes(text), error.message);
    for (const [key, value] of Object.entries(details)) assert.deepEqual(error[key], value, `${key} of: ${error.message}`);
    return true;
  });
}

const prepare = (gradients, options) => () => clipper.prepare(gradients, options);

test("options are checked before anything is made", async () => {
  const options = (given) => prepare([gradient()], given);
  await refused(options({ maxNorm: -1 }), "MaxNorm", "the limit is -1, but it must be 0 or greater", {
    given: -1,
    allowed: "0 or greater",
  });
  await refused(options({ maxNorm: NaN }), "MaxNorm", "the limit is NaN");
  await refused(options({ maxNrom: 1 }), "Option", 'the clip has the unknown field "maxNrom"; allowed: maxNorm, byNorm');
  await refused(options({ maxNorm: "1" }), "Option", 'maxNorm is "1", but it must be a number');
  await refused(options({}), "Option", "the clip has no method, but it must have one of maxNorm, byNorm");
  await refused(options({ maxNorm: 1, byValue: 1 }), "Option", "the clip has maxNorm and byValue");
  await refused(options({ ...clip, normType: NaN }), "NormType", "p must not be NaN");
  await refused(options({ ...clip, epsilon: -1 }), "Epsilon", "epsilon is -1", { given: -1 });
  await refused(options({ ...clip, epsilon: "torch" }), "Option", 'epsilon is "torch", but it must be pytorch or none');
  await refused(options({ ...clip, nonFinite: "ignore" }), "Parse", '"ignore" is no policy', {
    given: "ignore",
    allowed: "propagate, skip, zero, poison or error",
  });
  await refused(options({ ...clip, lossScale: 0 }), "LossScale", "the loss scale is 0", { given: 0 });
  await refused(options({ ...clip, dynamicLossScale: { backoff: 2 } }), "LossScaleOption", "the backoff factor of the loss scale is 2");
  await refused(options({ ...clip, lossScale: 2, dynamicLossScale: {} }), "Option", "exclude each other");
  await refused(options({ ...clip, zClip: { alpha: 1 } }), "ZClip", "zClip has alpha 1, zThreshold 2.5 and warmUp 25, but alpha must be in [0, 1)");
  await refused(options({ ...clip, autoClip: { window: 0 } }), "AutoClip", "window from 1 to 1024");
  await refused(options({ ...clip, zClip: {}, autoClip: {} }), "ConflictingLimits", "only one of byParameterNorm, zClip and autoClip");
  await refused(options({ ...clip, skipAbove: -1 }), "SkipAbove", "skipAbove is -1");
  await refused(options({ ...clip, maxConsecutiveSkips: 1 }), "MaxConsecutiveSkips", "skipAbove is not set");
  await refused(options({ byValue: -1 }), "ClipValue", "clipValue is -1");
  await refused(options({ byValueRange: [1, -1] }), "ClipRange", "low is 1 and high is -1");
  await refused(options({ byValue: 1, normType: 1 }), "NeedsNorm", "normType needs a norm, but byValue has none");
  await refused(options({ byRms: 1, normType: 1 }), "NormType", "byRms takes only the L2 norm");
  await refused(options({ byParameterNorm: { clipping: 0.01, floor: -1 } }), "ParameterFloor", "is -1");
  await refused(options([]), "NoClip", "no clip was given");
  await refused(options([clip, { maxNorm: -2 }]), "MaxNorm", "group 1: the limit is -2", { given: -2 });
  await refused(options([clip, { ...clip, normType: 1 }]), "GroupsDiffer", "differ in normType (l2 and l1)");
});

test("numbers are as short as they can be, as in the crate", async () => {
  const numbers = [
    [-0, "-0"],
    [-0.1, "-0.1"],
    [-1e-4, "-0.0001"],
    [-9.5e-5, "-9.5e-5"],
    [-9999999, "-9999999"],
    [-16777217, "-1.6777216e7"],
    [-1e30, "-1e30"],
    [-1e-45, "-1e-45"],
    [-3.4028234663852886e38, "-3.4028235e38"],
    // The nearest number of 8 digits is too low, and the next one right.
    [-(2 ** -96), "-1.2621775e-29"],
    [-(2 ** 87), "-1.5474251e26"],
    [-(2 ** 90), "-1.2379401e27"],
    [Infinity, "inf"],
    [NaN, "NaN"],
  ];
  for (const [lossScale, text] of numbers) {
    const given = Number.isFinite(lossScale) ? Number(text) : lossScale;
    await refused(prepare([gradient()], { ...clip, lossScale }), "LossScale", `the loss scale is ${text}, but`, { given });
  }
});

test("texts of the caller stay as they are in the fields of an error, and are escaped in its message", async () => {
  const texts = [
    ["\u0001123\u0001", "\\u{1}123\\u{1}"],
    ["\ufeffhead", "\\u{feff}head"],
    ["\u202ea\u200d\u{e0041}", "\\u{202e}a\\u{200d}\\u{e0041}"],
    ["\n\u001b[2J\u009b", "\\n\\u{1b}[2J\\u{9b}"],
    ['größe "max_norm" \\', 'größe \\"max_norm\\" \\\\'],
  ];
  for (const [label, escaped] of texts) {
    // The first is an error of the planner, the second one of this package.
    for (const [kind, more] of [["OutOfBounds", { length: 3 }], ["Option", { length: -1 }]]) {
      await refused(prepare([{ ...gradient(), label, ...more }], clip), kind, `gradient 0 ("${escaped}")`, { gradient: { index: 0, label } });
    }
    await refused(prepare([gradient()], { ...clip, nonFinite: label }), "Parse", `"${escaped}" is no policy`, { given: label });
    await refused(prepare([gradient()], { ...clip, epsilon: label }), "Option", `epsilon is "${escaped}"`, { given: label });
    await refused(prepare([gradient()], { ...clip, [label]: 1 }), "Option", `the unknown field "${escaped}"`, { given: label });
  }
  // What WebGPU says is no message of the planner.
  const label = "\u0001123\u0001";
  const destroyed = device.createBuffer({ size: 8, usage: GPUBufferUsage.STORAGE, label });
  destroyed.destroy();
  await refused(prepare([{ buffer: destroyed }], clip), "BufferRejected", label);
});

test("gradients are checked, and errors name them", async () => {
  const labelled = (given) => prepare([gradient(), { ...gradient(), label: "wgpu_max_norm", ...given }], clip);
  const id = { index: 1, label: "wgpu_max_norm" };
  await refused(labelled({ length: 3 }), "OutOfBounds", 'gradient 1 ("wgpu_max_norm")', { gradient: id, given: "0..12", allowed: "0..8" });
  await refused(labelled({ byteOffset: 2 }), "Misaligned", "multiple", { gradient: id, given: 2, allowed: "a multiple of 4" });
  await refused(labelled({ byteOffset: 100 }), "OutOfBounds", "100", { gradient: id });
  await refused(labelled({ offset: 4 }), "Option", 'has the unknown field "offset"', { gradient: id });
  await refused(labelled({ length: 1.5 }), "Option", "length is 1.5", { gradient: id });
  await refused(labelled({ length: -1 }), "Option", "length is -1", { gradient: id });
  await refused(labelled({ dtype: "f64" }), "Option", 'dtype is "f64", but it must be f32, f16 or bf16', { gradient: id });
  await refused(labelled({ group: 1 }), "GroupWithoutClip", "there is only group 0", { gradient: id, given: 1 });
  await refused(labelled({ rows: 3 }), "Rows", "cannot be split into 3 rows", { gradient: id, given: 3 });
  await refused(labelled({ columns: 3 }), "Columns", "cannot be split into 3 columns", { gradient: id, given: 3 });
  await refused(labelled({ rows: 2, columns: 2 }), "RowsAndColumns", "only one of the two", { gradient: id });
  await refused(labelled({ part: 2 }), "Part", "part", { gradient: id, given: 2 });
  await refused(labelled({ buffer: undefined }), "NoBuffer", "it must be a GPUBuffer", { gradient: id });
  const uniform = bufferOf(device, [1], GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST);
  await refused(labelled({ buffer: uniform }), "BufferUsage", "STORAGE", { gradient: id, given: "COPY_DST | UNIFORM", allowed: "STORAGE" });
  const { buffer } = gradient();
  await refused(prepare([{ buffer }, { buffer, byteOffset: 4 }], clip), "Overlap", "overlap", { gradient: { index: 1 }, given: "4..8" });
  const agc = { byParameterNorm: { clipping: 0.01, floor: 0 } };
  await refused(prepare([gradient()], agc), "MissingParameter", "has no parameter", { gradient: { index: 0 } });
  await refused(prepare([{ ...gradient(), parameter: gradient([1]) }], agc), "ParameterLength", "has 1 elements", { given: 1, allowed: 2 });
  await refused(prepare([{ ...gradient(), parameter: { ...gradient(), dtype: "f8" } }], agc), "Option", 'dtype is "f8"', { gradient: { index: 0 } });
  const partials = { buffer: bufferOf(device, [0, 0]), elements: 0 };
  await refused(prepare([{ ...gradient(), partials }], clip), "EmptyPartials", "gradient 0", { gradient: { index: 0 } });
});

test("a mapped, a destroyed and a foreign buffer", async () => {
  const list = (buffer) => [gradient(), { buffer, label: "head" }];
  const named = { gradient: { index: 1, label: "head" } };
  const mapped = device.createBuffer({ size: 8, usage: GPUBufferUsage.STORAGE, mappedAtCreation: true });
  await refused(prepare(list(mapped), clip), "BufferMapped", 'gradient 1 ("head")', named);

  const destroyed = gradient().buffer;
  destroyed.destroy();
  await refused(prepare(list(destroyed), clip), "BufferRejected", 'gradient 1 ("head"): WebGPU refused its buffer', named);

  const other = await requestDevice();
  const foreign = bufferOf(other, [3, 4]);
  await refused(prepare(list(foreign), clip), "BufferRejected", 'gradient 1 ("head"): WebGPU refused its buffer', named);

  const parameter = { buffer: destroyed };
  const agc = { byParameterNorm: { clipping: 0.01, floor: 0 } };
  await refused(prepare([{ ...gradient(), parameter }], agc), "BufferRejected", "parameter", { gradient: { index: 0 } });
  assert.deepEqual(other.errors, []);
});

test("a plan that WebGPU refuses leaves its gradients alone, and the clipper usable", async () => {
  const destroyed = gradient().buffer;
  destroyed.destroy();
  const good = gradient();
  await refused(prepare([good, { buffer: destroyed }], clip), "BufferRejected", "gradient 1");
  assert.deepEqual(await floatsOf(device, good.buffer), [3, 4]);
  const plan = await clipper.prepare([good], clip);
  const ticket = submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)));
  assert.equal((await ticket).totalNorm, 5);
});

test("a ticket of an encoder that was not submitted", async () => {
  const plan = await clipper.prepare([gradient()], clip);
  const dropped = device.createCommandEncoder();
  plan.encode(dropped);
  const ticket = plan.readBack(dropped);
  await refused(async () => ticket, "NotSubmitted", "had not been submitted");

  // Neither the first copy into a staging buffer nor the next one can pass for a copy that never ran.
  for (let step = 0; step < 3; step++) {
    await submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)));
    const lost = plan.readBack(device.createCommandEncoder());
    await refused(async () => lost, "NotSubmitted", "had not been submitted");
  }
});

test("a ticket whose submission WebGPU refused", async () => {
  const list = [gradient()];
  const plan = await clipper.prepare(list, clip);
  list[0].buffer.destroy();
  device.pushErrorScope("validation");
  const ticket = submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)));
  assert.match((await device.popErrorScope()).message, /destroyed/);
  await refused(async () => ticket, "NotSubmitted", "WebGPU refused its commands");
});

test("results that there are not", async () => {
  const plan = await clipper.prepare([gradient()], clip);
  const ticket = (read) => async () => submit(device, read);
  await refused(ticket((encoder) => plan.readBack(encoder)), "NothingMeasured", "no norm was measured");
  await refused(ticket((encoder) => plan.readBackTensorStats(encoder)), "NotEnabled", "tensorStats");
  await refused(ticket((encoder) => plan.readBackStepCounts(encoder)), "NotEnabled", "countSteps");
  await refused(ticket((encoder) => plan.readBackLossScale(encoder)), "NotEnabled", "dynamicLossScale");
  await refused(ticket((encoder) => plan.readBackHistories(encoder)), "NotEnabled", "zClip");
  await refused(ticket((encoder) => plan.readBackNormWindows(encoder)), "NotEnabled", "autoClip");
  assert.deepEqual([plan.tensorStatsBuffer, plan.stepCountsBuffer, plan.lossScaleBuffer], [undefined, undefined, undefined]);
  const byValue = await clipper.prepare([gradient()], { byValue: 1 });
  await refused(ticket((encoder) => byValue.readBack(encoder)), "NothingMeasured", "a clip by value measures none");
});

test("the policy that makes NaN an error names the gradient", async () => {
  const list = [gradient(), { ...gradient([1, NaN]), label: "head" }];
  const plan = await clipper.prepare(list, { ...clip, nonFinite: "error" });
  const step = async () => submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)));
  await refused(step, "NonFinite", 'gradient 1 ("head") is the first with an infinity or a NaN', {
    gradient: { index: 1, label: "head" },
  });
  assert.deepEqual(await floatsOf(device, list[0].buffer), [3, 4]);
});

test("partials that no kernel has written", async () => {
  const list = [gradient(), { ...gradient(), label: "head" }];
  list[1].partials = { buffer: bufferOf(device, [0, 0]), elements: 2 };
  const plan = await clipper.prepare(list, clip);
  const step = async () => submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)));
  await refused(step, "PartMissing", 'gradient 1 ("head") was not measured in this step', { gradient: { index: 1, label: "head" } });
  assert.deepEqual(await floatsOf(device, list[0].buffer), [3, 4]);
});

test("updates are checked", async () => {
  const plan = await clipper.prepare([gradient()], clip);
  const update = (call) => async () => call();
  await refused(update(() => plan.setMaxNorms([1, 2])), "LimitCount", "2", { given: 2, allowed: 1 });
  await refused(update(() => plan.setMaxNorms([-1])), "MaxNorm", "the limit is -1", { given: -1 });
  await refused(update(() => plan.setLossScale(0)), "LossScale", "the loss scale is 0");
  await refused(update(() => plan.setDynamicLossScale({})), "NotEnabled", "dynamicLossScale");
  await refused(update(() => plan.supplyNorm(1)), "UnexpectedNorm", "norm");
  await refused(update(() => plan.setStepCounts([])), "NotEnabled", "countSteps");
  await refused(update(() => plan.setHistories([])), "NotEnabled", "zClip");
  await refused(update(() => plan.setNormWindows([])), "NotEnabled", "autoClip");
  const encoder = device.createCommandEncoder();
  const source = { buffer: bufferOf(device, [1]) };
  await refused(update(() => plan.copyMaxNorm(encoder, 1, source)), "NoSuchGroup", "group", { given: 1 });
  await refused(update(() => plan.copyMaxNorm(encoder, 0, { ...source, byteOffset: 2 })), "CopySource", "multiple of 4");
  await refused(update(() => plan.copyNorm(encoder, source)), "UnexpectedNorm", "norm");
  const windows = await clipper.prepare([gradient()], { maxNorm: 1, autoClip: { window: 2 } });
  await refused(update(() => windows.setNormWindows([{ norms: [1, 2, 3] }])), "NormWindow", "has 3 norms");
  await refused(update(() => windows.setNormWindows([])), "StateCount", "0", { given: 0, allowed: 1 });
});

test("parts that there are not", async () => {
  const encoder = device.createCommandEncoder();
  const whole = await clipper.prepare([gradient()], clip);
  await refused(async () => whole.encodePart(encoder, 0), "NoSuchPart", "not measured in parts", { given: 0 });
  await refused(async () => whole.encodeRecord(encoder), "NoSuchPart", "encodeNorm");
  const parts = await clipper.prepare([{ ...gradient(), part: 0 }], clip);
  await refused(async () => parts.encodePart(encoder, 1), "NoSuchPart", "the parts are 0 to 0", { given: 1 });
});

test("a rebind checks that the gradients are the same, and leaves the plan as it was", async () => {
  const plan = await clipper.prepare([gradient()], clip);
  await refused(async () => plan.rebind([]), "RebindCount", "0", { given: 0, allowed: 1 });
  await refused(async () => plan.rebind([gradient([1])]), "RebindMismatch", "number of elements", { gradient: { index: 0 } });
  const destroyed = gradient().buffer;
  destroyed.destroy();
  await refused(async () => plan.rebind([{ buffer: destroyed }]), "BufferRejected", "gradient 0");
  const ticket = submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)));
  assert.equal((await ticket).totalNorm, 5);
});

test("a plan that was destroyed", async () => {
  const plan = await clipper.prepare([gradient()], clip);
  const ticket = submit(device, (encoder) => (plan.encode(encoder), plan.readBack(encoder)));
  plan.destroy();
  plan.destroy();
  assert.equal((await ticket).totalNorm, 5);
  await refused(async () => plan.encode(device.createCommandEncoder()), "Destroyed", "the plan was destroyed");
});

test("a device that is lost, and something that is no device", async () => {
  const lost = await requestDevice();
  const its = await Clipper.create(lost);
  const list = [{ buffer: bufferOf(lost, [3, 4]) }];
  const plan = await its.prepare(list, clip);
  const encoder = lost.createCommandEncoder();
  plan.encode(encoder);
  const ticket = plan.readBack(encoder);
  const commands = encoder.finish();
  lost.destroy();
  lost.queue.submit([commands]);
  await refused(async () => ticket, "DeviceLost", "the device was lost or destroyed");
  await refused(async () => its.prepare(list, clip), "DeviceLost", "lost");
  await refused(async () => plan.setMaxNorms([1]), "DeviceLost", "lost");
  await refused(async () => Clipper.create(lost), "DeviceLost", "lost");
  await refused(async () => Clipper.create(undefined), "NoDevice", "needs a GPUDevice, but was given undefined");
});
