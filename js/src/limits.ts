import { gpuObject } from "./checks.js";

/** The most windows of gradients that one dispatch binds, and the two buffers before them. */
const BINDINGS = 2 + 64;

/** The invocations of the widest workgroup. */
const WIDE = 1024;

/**
 * Returns limits for `adapter.requestDevice({ requiredLimits })`: those with which clips need the fewest dispatches. The
 * default limits of WebGPU are enough; these are faster for many buffers, or large ones.
 */
export function recommendedLimits(adapter: Pick<GPUAdapter, "limits">): Record<string, number> {
  const { limits } = gpuObject<GPUAdapter>({}, "the adapter", adapter, "limits", "a GPUAdapter");
  return {
    maxStorageBuffersPerShaderStage: Math.min(BINDINGS, limits.maxStorageBuffersPerShaderStage),
    maxComputeWorkgroupSizeX: Math.min(WIDE, limits.maxComputeWorkgroupSizeX),
    maxComputeInvocationsPerWorkgroup: Math.min(WIDE, limits.maxComputeInvocationsPerWorkgroup),
    maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
    maxBufferSize: limits.maxBufferSize,
  };
}
