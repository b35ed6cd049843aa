// Partials that a kernel of the caller writes, and a plan reads: under Node with Dawn, and in a page.
import assert from "node:assert/strict";
import { after, test } from "node:test";

import { Clipper } from "gradclip";
import { bufferOf, bytesOf, floatsOf, requestDevice, submit } from "./support/gpu.js";
import { producers } from "./support/producer.js";

const device = await requestDevice();
const clipper = await Clipper.create(device);

after(() => assert.deepEqual(device.errors, [], "errors that no error scope caught"));

/** The kernel of a trainer: one workgroup produces a run. Its words come from `source`. */
const backward = (perVector) => `
  @group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
  @group(0) @binding(1) var<storage, read_write> gradient: array<vec4<u32>>;
  @group(0) @binding(2) var<storage, read_write> partials: array<gradclip_Partial>;
  // The length, and the index of the first partial.
  @group(0) @binding(3) var<uniform> place: vec2<u32>;

  @compute @workgroup_size(gradclip_WORKGROUP_SIZE)
  fn backward(@builtin(workgroup_id) run: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let start = run.x * gradclip_WORKGROUP_SIZE * gradclip_VECTORS;
    var held: array<vec4<u32>, gradclip_VECTORS>;
    for (var k = 0u; k < gradclip_VECTORS; k += 1u) {
      let at = start + lane + k * gradclip_WORKGROUP_SIZE;
      if (at < arrayLength(&source)) {
        held[k] = source[at];
        gradient[at] = held[k];
      }
    }
    let in_run = ${perVector}u * gradclip_WORKGROUP_SIZE * gradclip_VECTORS;
    let partial = gradclip_partial_of_run(lane, min(in_run, place.x - run.x * in_run), held);
    if (lane == 0u) { partials[place.y + run.x] = partial; }
  }`;

function compile(producer, perVector) {
  const compute = { module: device.createShaderModule({ code: producer.wgsl + backward(perVector) }), entryPoint: "backward" };
  return device.createComputePipelineAsync({ layout: "auto", compute });
}

/** A gradient, the kernel that copies it from its source, and where its partials are in a buffer that others share. */
function produce(producer, pipeline, { words, length, partials, first }) {
  const padded = new Uint32Array(4 * Math.ceil(words.length / 4));
  padded.set(words);
  const [source, buffer] = [bufferOf(device, padded), bufferOf(device, new Uint32Array(padded.length))];
  const place = bufferOf(device, Uint32Array.of(length, first), GPUBufferUsage.UNIFORM);
  const entries = [source, buffer, partials, place].map((buffer, binding) => ({ binding, resource: { buffer } }));
  const bindGroup = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
  return {
    gradient: { buffer, length },
    partials: { buffer: partials, elements: producer.elements, byteOffset: first * producer.partialBytes },
    write(values) {
      device.queue.writeBuffer(source, 0, values);
    },
    dispatch(pass) {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, bindGroup);
      pass.dispatchWorkgroups(Math.ceil(length / producer.elements));
    },
  };
}

function inPass(encoder, record) {
  const pass = encoder.beginComputePass();
  record(pass);
  pass.end();
}

const LENGTHS = [9000, 13, 4096, 1];
/** The first partial of each: out of order, and with gaps. */
const FIRSTS = [40, 7, 33, 90];

/** The bits of these numbers, which are f16 numbers too. */
const bits = {
  f32: (numbers) => new Uint32Array(Float32Array.from(numbers).buffer),
  f16(numbers) {
    const half = (x) => {
      if (Number.isNaN(x)) return 0x7e00;
      const sign = x < 0 ? 0x8000 : 0;
      if (x === 0 || !Number.isFinite(x)) return sign | (x === 0 ? 0 : 0x7c00);
      const exponent = Math.floor(Math.log2(Math.abs(x)));
      return sign | ((exponent + 15) << 10) | ((Math.abs(x) / 2 ** exponent - 1) * 1024);
    };
    const halves = Uint16Array.from([...numbers, ...new Array(numbers.length % 2).fill(0)], half);
    return new Uint32Array(halves.buffer);
  },
};

/** Multiples of 1/64 in (-4, 4), always the same. */
function numbers(length, scale) {
  let state = length;
  return Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (((state >>> 16) % 511) - 255) * scale;
  });
}

for (const [name, dtype, options] of [
  ["f32", "f32", { maxNorm: 1 }],
  ["f16WithStats", "f16", { maxNorm: 1, tensorStats: true }],
]) {
  test(`partials of ${dtype} that a kernel wrote have the bits of the plan's own pass`, async () => {
    const producer = producers[name];
    const perVector = dtype === "f32" ? 4 : 8;
    const partials = bufferOf(device, new Uint32Array(4096));
    const lists = LENGTHS.map((length) => numbers(length, 1 / 64));
    const pipeline = await compile(producer, perVector);
    const produced = lists.map((list, index) =>
      produce(producer, pipeline, { words: bits[dtype](list), length: list.length, partials, first: FIRSTS[index] }),
    );
    // The last one has no partials: the plan measures it.
    const plain = await clipper.prepare(produced.map(({ gradient }) => ({ ...gradient, dtype })), options);
    const declared = await clipper.prepare(
      produced.map(({ gradient, partials }, index) => ({ ...gradient, dtype, ...(index < 3 && { partials }) })),
      options,
    );
    const run = async (plan, onePass) => {
      const [record, stats] = submit(device, (encoder) => {
        inPass(encoder, (pass) => {
          for (const each of produced) each.dispatch(pass);
          if (onePass) plan.encodeInto(pass);
        });
        if (!onePass) plan.encode(encoder);
        return [plan.readBack(encoder), options.tensorStats && plan.readBackTensorStats(encoder)];
      });
      const { totalNorm, clipCoef } = await record;
      const after = await Promise.all([plan.recordBuffer, ...produced.map(({ gradient }) => gradient.buffer)].map((buffer) => bytesOf(device, buffer)));
      const words = after.map((bytes, index) => [...new Uint32Array(index === 0 ? bytes.slice(0, 40) : bytes)]);
      return { totalNorm, clipCoef, words, stats: stats && (await stats) };
    };
    const special = (value) => lists.map((list, index) => (index === 2 ? list.map((x, at) => (at === 4000 ? value : x)) : list));
    const contents = { plain: lists, zeros: lists.map((list) => list.map(() => 0)), NaN: special(NaN), infinity: special(-Infinity) };
    if (dtype === "f32") contents.huge = lists.map((list) => list.map((x) => x * 1e30));
    for (const [what, values] of Object.entries(contents)) {
      for (const [index, each] of produced.entries()) each.write(bits[dtype](values[index]));
      const expected = await run(plain, false);
      const sum = Math.sqrt(values.flat().reduce((total, x) => total + x * x, 0));
      const isRight = Object.is(Math.fround(sum), expected.totalNorm) || Math.abs(expected.totalNorm / sum - 1) < 1e-6;
      assert.ok(isRight, `${what}: ${expected.totalNorm} is not ${sum}`);
      assert.deepEqual(await run(declared, false), expected, what);
      if (values === lists) assert.deepEqual(await run(declared, true), expected, "in one pass");
    }
  });
}

test("the plan reads the partials, not the gradient, and a kernel that did not run is an error", async () => {
  const producer = producers.f32;
  const partials = bufferOf(device, new Uint32Array(16));
  const pipeline = await compile(producer, 4);
  const produced = produce(producer, pipeline, { words: bits.f32([3, 4]), length: 2, partials, first: 2 });
  const list = [{ ...produced.gradient, partials: produced.partials, label: "weight" }];
  const plan = await clipper.prepare(list, { maxNorm: 2.5, epsilon: 0 });
  const step = (...encode) =>
    submit(device, (encoder) => {
      for (const each of encode) each(encoder);
      return plan.readBack(encoder);
    });
  const kernel = (encoder) => inPass(encoder, produced.dispatch);
  const clip = (encoder) => plan.encode(encoder);
  const missing = { kind: "PartMissing", gradient: { index: 0, label: "weight" } };
  await assert.rejects(async () => step(clip), missing);
  assert.equal((await step(kernel, clip)).totalNorm, 5);
  assert.deepEqual((await floatsOf(device, list[0].buffer)).slice(0, 2), [1.5, 2]);
  // The plan has reset the partials.
  await assert.rejects(async () => step(clip), missing);
  assert.deepEqual((await floatsOf(device, list[0].buffer)).slice(0, 2), [1.5, 2]);
  // What another kernel does to the gradient afterwards is not measured.
  const overwrite = (encoder) => encoder.clearBuffer(list[0].buffer);
  assert.equal((await step(kernel, overwrite, clip)).totalNorm, 5);
  const halves = [(encoder) => plan.encodeRecord(encoder), (encoder) => plan.encodeScale(encoder)];
  assert.equal((await step(kernel, ...halves)).totalNorm, 5);
});
