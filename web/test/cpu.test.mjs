// The CPU path in WebAssembly against the native command, to the bit.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import { CASES, gradients, hashOf } from "./cases.mjs";
import init, { Gradients, clipGradNorm } from "../../target/web/cpu/gradclip_web_cpu.js";
import { parse } from "../../target/web/safetensors.js";

const native = JSON.parse(await readFile(new URL("native.json", import.meta.url), "utf8"));
await init({ module_or_path: await readFile(new URL("../../target/web/cpu/gradclip_web_cpu_bg.wasm", import.meta.url)) });

/** Reads a file of the repository. */
async function load(path) {
  const bytes = await readFile(new URL(`../../${path}`, import.meta.url));
  return parse(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
}

for (const testCase of CASES) {
  const { name, file, method, limit, normType } = testCase;
  test(`${name}: norm, coefficient and elements of the native command`, async () => {
    const expected = native[name];
    const tensors = file ? await load(file) : gradients(testCase);
    const set = new Gradients();
    for (const { dtype, bytes } of tensors) set.add(dtype, bytes);
    const norms = set.norms(method === "norm" ? Number(normType) : 2);
    for (const [tensor, norm] of Object.entries(expected.norms)) {
      assert.equal(norms[tensors.findIndex(({ name }) => name === tensor)], norm, tensor);
    }
    set.keep();
    for (let repetition = 0; repetition < 2; repetition++) {
      set.restore();
      if (method === "norm") {
        const { totalNorm, clipCoef } = set.clipByGlobalNorm(limit, Number(normType));
        assert.equal(totalNorm, expected.total_norm);
        assert.equal(clipCoef, expected.clip_coef);
      } else {
        set.clipByValue(limit);
      }
      assert.equal(hashOf(tensors.map(({ name }, index) => ({ name, bytes: set.bytes(index) }))), expected.sha256);
    }
    assert.equal(set.bytes(tensors.length), undefined);
  });
}

test("invalid arguments are errors that say what is allowed", () => {
  const set = new Gradients();
  assert.throws(() => set.add("f64", new Uint8Array(8)), /"f64": f32, f16 or bf16 is allowed/);
  set.add("f32", new Uint8Array(8));
  assert.throws(() => set.clipByGlobalNorm(-1, 2), /the limit is -1, but it must be 0 or greater/);
  assert.throws(() => set.clipByGlobalNorm(1, NaN), /NaN/);
  assert.throws(() => set.clipByValue(NaN), /NaN/);
  assert.deepEqual([...set.bytes(0)], Array(8).fill(0));
});

test("one f32 gradient is clipped in place", () => {
  const gradient = Float32Array.of(3, 4);
  const { totalNorm, clipCoef } = clipGradNorm(gradient, 1);
  assert.equal(totalNorm, 5);
  assert.equal(clipCoef, Math.fround(1 / (5 + 1e-6)));
  assert.deepEqual([...gradient], [3, 4].map((value) => Math.fround(value * clipCoef)));
});
