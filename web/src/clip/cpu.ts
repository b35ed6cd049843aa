// Clips on the CPU.

import { type Gradients, gradientsOf } from "../cpu.js";
import type { Tensor } from "../tensors.js";
import type { ClipRequest, Clipped, Outcome } from "./request.js";
import { type Timing, timeBatches } from "./timing.js";

/** A set of gradients in WebAssembly's memory. */
export class CpuClip {
  private readonly gradients: Gradients;

  constructor(tensors: readonly Tensor[], private readonly request: ClipRequest) {
    this.gradients = gradientsOf(tensors);
    this.gradients.keep();
  }

  /** Clips the gradients. */
  clip(): Clipped & { before: Float32Array; after: Float32Array } {
    const normType = this.request.method === "norm" ? this.request.normType : 2;
    this.gradients.restore();
    const before = this.gradients.norms(normType);
    const outcome = this.encode();
    const after = this.gradients.norms(normType);
    const outputs = Array.from(before, (_, index) => this.gradients.bytes(index)!);
    return { outcome, outputs, before, after };
  }

  private encode(): Outcome | null {
    const { gradients, request } = this;
    if (request.method === "value") {
      gradients.clipByValue(request.limit);
      return null;
    }
    const outcome = gradients.clipByGlobalNorm(request.limit, request.normType);
    const { totalNorm, clipCoef } = outcome;
    outcome.free();
    return { totalNorm, clipCoef };
  }

  /** Measures the time of a clip. */
  async time(): Promise<Timing> {
    const batch = async (count: number, clips: boolean): Promise<number> => {
      // Keeps the page responsive between batches.
      await new Promise((resolve) => setTimeout(resolve));
      const start = performance.now();
      for (let i = 0; i < count; i++) {
        this.gradients.restore();
        if (clips) this.encode();
      }
      return performance.now() - start;
    };
    return timeBatches(batch);
  }

  destroy(): void {
    this.gradients.free();
  }
}

/** Measures the norm of each tensor. */
export function norms(tensors: readonly Tensor[], normType: number): Float32Array {
  const gradients = gradientsOf(tensors);
  try {
    return gradients.norms(normType);
  } finally {
    gradients.free();
  }
}

/** Measures the joint norm of tensors. */
export function totalNorm(tensors: readonly Tensor[], normType: number): number {
  const gradients = gradientsOf(tensors);
  try {
    const outcome = gradients.clipByGlobalNorm(Infinity, normType);
    const { totalNorm } = outcome;
    outcome.free();
    return totalNorm;
  } finally {
    gradients.free();
  }
}
