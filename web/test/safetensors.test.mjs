// Files: what is read, and the errors of broken ones.

import assert from "node:assert/strict";
import { test } from "node:test";

import { parse, serialize } from "../../target/web/safetensors.js";
import { decode, encode, generate } from "../../target/web/tensors.js";

/** Builds a file of a header and `data` bytes. */
function file(header, data = 0) {
  const text = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = Buffer.alloc(8 + text.length + data);
  bytes.writeBigUInt64LE(BigInt(text.length));
  text.copy(bytes, 8);
  return Uint8Array.from(bytes).buffer;
}

const bytesOf = (text) => Uint8Array.from(Buffer.from(text, "latin1")).buffer;
const entry = (dtype, shape, start, end) => ({ dtype, shape, data_offsets: [start, end] });

test("tensors come back as they were written, in the order of the data", async () => {
  const tensors = [
    { name: "b", dtype: "f32", shape: [2, 1], bytes: new Uint8Array(Float32Array.of(1.5, -2).buffer) },
    { name: "a", dtype: "bf16", shape: [3], bytes: Uint8Array.of(1, 2, 3, 4, 5, 6) },
    { name: "empty", dtype: "f16", shape: [0, 7], bytes: new Uint8Array(0) },
  ];
  const written = await new Blob(serialize(tensors)).arrayBuffer();
  const read = parse(written);
  assert.deepEqual(read.map(({ name, dtype, shape, bytes }) => ({ name, dtype, shape, bytes: bytes.slice() })), tensors);
  assert.equal(new DataView(written).getUint32(0, true) % 8, 0);
});

test("metadata is no tensor", () => {
  const [tensor] = parse(file({ __metadata__: { format: "pt" }, w: entry("F16", [2], 0, 4) }, 4));
  assert.deepEqual([tensor.name, tensor.dtype, tensor.bytes.length], ["w", "f16", 4]);
});

const BROKEN = {
  "an empty file": [new ArrayBuffer(0), /it has 0 bytes, but the header's length alone takes 8/],
  "a file of zeros": [new ArrayBuffer(64), /the header is not valid JSON/],
  "a header that is cut off": [file({ w: entry("F32", [1], 0, 4) }).slice(0, 20), /announce a header of \d+ bytes, but 12 bytes follow/],
  "data that is cut off": [file({ w: entry("F32", [2], 0, 8) }, 7), /describes 8 bytes of tensors, but 7 bytes follow/],
  "data that is too long": [file({ w: entry("F32", [2], 0, 8) }, 9), /describes 8 bytes of tensors, but 9 bytes follow/],
  "no tensors": [file({ __metadata__: {} }), /has no tensors/],
  "a list": [file("[1]"), /not a JSON object/],
  "bad JSON": [file('{"w":'), /not valid JSON/],
  "bad UTF-8": [bytesOf("\x0a\0\0\0\0\0\0\0{\"\xff\":null}"), /not valid JSON/],
  "an entry that is null": [file({ w: null }), /tensor "w" is not an object/],
  "no dtype": [file({ w: { shape: [], data_offsets: [0, 4] } }), /tensor "w" has no dtype/],
  "integers": [file({ w: entry("I64", [1], 0, 8) }, 8), /tensor "w" holds "I64"; gradients are F32, F16 or BF16/],
  "a name of Object.prototype": [file({ w: entry("toString", [1], 0, 8) }, 8), /holds "toString"/],
  "a negative size": [file({ w: entry("F32", [-1], 0, 4) }, 4), /shape of tensor "w" is not a list of sizes/],
  "a fraction": [file({ w: entry("F32", [0.5], 0, 2) }, 2), /shape of tensor "w" is not a list of sizes/],
  "three offsets": [file({ w: { dtype: "F32", shape: [1], data_offsets: [0, 4, 4] } }, 4), /data_offsets of tensor "w"/],
  "offsets that go back": [file({ w: entry("F32", [1], 4, 0) }, 4), /ends before it begins: its data_offsets are \[4, 0\]/],
  "a wrong size": [file({ w: entry("F32", [3], 0, 8) }, 8), /shape \[3\] of F32 requires 12 bytes, but data_offsets \[0, 8\] span 8/],
  "a gap": [file({ a: entry("F32", [1], 0, 4), b: entry("F32", [1], 8, 12) }, 12), /bytes 4 to 8 of the data, before tensor "b"/],
  "an overlap": [file({ a: entry("F32", [2], 0, 8), b: entry("F32", [1], 4, 8) }, 8), /"a" and "b" overlap/],
  "a shape beyond 2^53": [file({ w: entry("F32", [2 ** 40, 2 ** 40], 0, 4) }, 4), /requires 4\.8\d+e\+24 bytes/],
  "a shape of a thousand dimensions": [file({ w: entry("F32", Array(1000).fill(2), 0, 4) }, 4), /: shape \[(2, ){8}…\] of F32 requires/],
  "a zip archive": [bytesOf("PK\x03\x04 and more"), /a zip archive, as torch\.save/],
  "a pickle": [bytesOf("\x80\x02}q\x00."), /a Python pickle/],
  "NumPy": [bytesOf("\x93NUMPY\x01\x00"), /a NumPy array/],
  "GGUF": [bytesOf("GGUF\x03\0\0\0"), /a GGUF file/],
  "HDF5": [bytesOf("\x89HDF\r\n\x1a\n"), /an HDF5 file/],
  "gzip": [bytesOf("\x1f\x8b\x08\0"), /compressed by gzip/],
  "HTML": [bytesOf("  <!DOCTYPE html><p>404"), /an HTML page/],
  "a Git LFS pointer": [bytesOf("version https://git-lfs.github.com/spec/v1"), /Git LFS pointer/],
  "JSON": [bytesOf('{"weight_map": {}}'), /but JSON/],
};
for (const [what, [bytes, error]] of Object.entries(BROKEN)) {
  test(`an error for ${what}`, () => assert.throws(() => parse(bytes), error));
}

test("long and strange names are shortened and escaped in errors", () => {
  const name = `\n${"x".repeat(500)}`;
  assert.throws(() => parse(file({ [name]: entry("I8", [1], 0, 1) }, 1)), ({ message }) => {
    assert.ok(message.length < 200 && message.includes('"\\nxxx') && message.includes("…"), message);
    return true;
  });
});

test("f16 and bf16 are rounded to nearest even, and decoded exactly", () => {
  const all = new Uint16Array(1 << 16).map((_, bits) => bits);
  for (const [dtype, significand] of [["f16", 0x3ff], ["bf16", 0x7f]]) {
    const values = decode({ dtype, bytes: new Uint8Array(all.buffer) });
    const again = new Uint16Array(encode(values, dtype).buffer);
    const exponent = dtype === "f16" ? 0x7c00 : 0x7f80;
    all.forEach((bits, i) => {
      const isFinite = (bits & exponent) !== exponent;
      if (isFinite) assert.equal(again[i], bits, `${dtype} ${bits.toString(16)}`);
    });
    // Halfway between neighbours: to the even one. A little more or less: to the nearer one.
    for (let bits = 0; bits < exponent - 1; bits++) {
      const middle = (values[bits] + values[bits + 1]) / 2;
      const nudge = (values[bits + 1] - values[bits]) / 8;
      const given = encode(Float32Array.of(middle, middle - nudge, middle + nudge), dtype);
      const [tie, below, above] = new Uint16Array(given.buffer);
      assert.equal(tie, bits + (bits & 1), `tie above ${bits.toString(16)}, significand ${bits & significand}`);
      assert.deepEqual([below, above], [bits, bits + 1]);
    }
  }
});

test("generated gradients are deterministic, normal, and explode on demand", () => {
  const recipe = { tensors: 6, elements: 4096, dtype: "f32", exploding: false };
  const [tensors, again, exploding] = [recipe, recipe, { ...recipe, exploding: true }].map(generate);
  assert.deepEqual(tensors, again);
  const deviations = tensors.map((tensor) => {
    const values = decode(tensor);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
    assert.ok(Math.abs(mean) < 0.1 * deviation);
    const within = values.filter((value) => Math.abs(value) < deviation).length / values.length;
    assert.ok(Math.abs(within - 0.68) < 0.03, `${within} within one standard deviation`);
    return deviation;
  });
  assert.ok(new Set(deviations).size > 2);
  const changed = tensors.map((tensor, i) => decode(exploding[i])[0] / decode(tensor)[0]);
  assert.deepEqual(changed.map(Math.round).sort(), [1, 1, 1, 1, 1, 1000].sort());
  assert.throws(() => generate({ ...recipe, tensors: 1000, elements: 2 ** 22 }), /1000 tensors of 4194304 elements take 16,000 MiB; the page clips at most 256 MiB/);
});

test("a size of 0 makes any shape empty", () => {
  const [tensor] = parse(file({ w: entry("F32", [...Array(50).fill(2 ** 40), 0], 0, 0) }));
  assert.equal(tensor.bytes.length, 0);
});

test("a file that is a few bytes too large is told how large it is", () => {
  const header = new TextEncoder().encode(JSON.stringify({ w: entry("F32", [2 ** 26 + 1], 0, 2 ** 28 + 4) }));
  const bytes = new Uint8Array(8 + header.length + 2 ** 28 + 4);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(header.length), true);
  bytes.set(header, 8);
  assert.throws(() => parse(bytes.buffer), /the tensors take 268,435,460 bytes; the page clips at most 268,435,456\./);
});
