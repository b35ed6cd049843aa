// gradclip's CPU path: the Rust crate, compiled to WebAssembly by web/cpu.

import init, { Gradients, clipGradNorm } from "./cpu/gradclip_web_cpu.js";
import type { ClipGradient } from "./rnn/cpu.js";
import type { Tensor } from "./tensors.js";

export { Gradients };

let loading: Promise<unknown> | null = null;

/** Loads the WebAssembly module, once. */
export async function loadCpuPath(): Promise<void> {
  const wasm = new URL("cpu/gradclip_web_cpu_bg.wasm", import.meta.url);
  await (loading ??= init({ module_or_path: wasm }));
}

/** Copies tensors into WebAssembly's memory. */
export function gradientsOf(tensors: readonly Tensor[]): Gradients {
  const gradients = new Gradients();
  try {
    for (const { dtype, bytes } of tensors) gradients.add(dtype, bytes);
  } catch (error) {
    gradients.free();
    throw error;
  }
  return gradients;
}

/** Clips the gradient of the recurrent network. */
export const clipGradient: ClipGradient = (gradient, maxNorm) => {
  const outcome = clipGradNorm(gradient, maxNorm);
  const { totalNorm, clipCoef } = outcome;
  outcome.free();
  return { totalNorm, clipCoef };
};
