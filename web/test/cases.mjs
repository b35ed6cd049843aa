// The sets of gradients whose figures the tests compare with those of the native command.

import { createHash } from "node:crypto";

import { generate } from "../../target/web/tensors.js";

/** `file` is one of the repository's; `recipe` is what the page generates. `method`, `limit` and `normType` are the form's. */
export const CASES = [
  { name: "example", file: "examples/data/exploding_rnn.safetensors", method: "norm", limit: 1, normType: "2" },
  { name: "example-l1", file: "examples/data/exploding_rnn.safetensors", method: "norm", limit: 5, normType: "1" },
  { name: "example-value", file: "examples/data/exploding_rnn.safetensors", method: "value", limit: 0.01 },
  { name: "f32", recipe: { tensors: 24, elements: 4096, dtype: "f32", exploding: true }, method: "norm", limit: 1, normType: "2" },
  { name: "f32-max", recipe: { tensors: 24, elements: 4096, dtype: "f32", exploding: true }, method: "norm", limit: 0.5, normType: "Infinity" },
  { name: "f16", recipe: { tensors: 3, elements: 1024, dtype: "f16", exploding: true }, method: "norm", limit: 2, normType: "2" },
  { name: "bf16", recipe: { tensors: 40, elements: 1024, dtype: "bf16", exploding: false }, method: "norm", limit: 0.1, normType: "2" },
  { name: "many", recipe: { tensors: 2100, elements: 1024, dtype: "bf16", exploding: true }, method: "norm", limit: 1, normType: "2" },
  { name: "bf16-value", recipe: { tensors: 40, elements: 1024, dtype: "bf16", exploding: true }, method: "value", limit: 0.01 },
];

/** Generates the gradients of a case with a recipe. */
export function gradients({ recipe }) {
  return generate(recipe);
}

/** The hash of names and elements, in the order of the names. */
export function hashOf(tensors) {
  const hash = createHash("sha256");
  for (const { name, bytes } of [...tensors].sort((a, b) => (a.name < b.name ? -1 : 1))) hash.update(name).update(bytes);
  return hash.digest("hex");
}
