import { GradclipError } from "./errors.js";
import type { Clip, Gradient } from "./options.js";

/** What the planner is asked: everything about the gradients and the device that a plan depends on, as data. */
export interface Request {
  device: Record<string, number | boolean>;
  buffers: { index: number; size: number; usage: number; mapped: boolean }[];
  gradients: Record<string, unknown>[];
  clips: readonly Clip[];
}

/** A request, and the buffers that it numbers, in the order of their first appearance. */
export interface Asked {
  request: Request;
  buffers: GPUBuffer[];
}

/** Describes gradients and clips for the planner. Every field is handed on, so that it refuses those that it does not know. */
export function ask(device: GPUDevice, gradients: readonly Gradient[], clips: readonly Clip[]): Asked {
  const buffers: GPUBuffer[] = [];
  const indices = new Map<GPUBuffer, number>();
  const numbered = (buffer: GPUBuffer, gradient: number, what: string): number => {
    if (typeof buffer?.mapState !== "string") throw noBuffer(buffer, gradient, what);
    let index = indices.get(buffer);
    if (index === undefined) {
      index = buffers.push(buffer) - 1;
      indices.set(buffer, index);
    }
    return index;
  };
  const described = gradients.map((gradient, index) => {
    const { buffer, parameter, partials, ...rest } = gradient;
    return {
      ...rest,
      buffer: numbered(buffer, index, "the buffer"),
      ...(parameter && { parameter: { ...parameter, buffer: numbered(parameter.buffer, index, "the parameter") } }),
      ...(partials && { partials: { ...partials, buffer: numbered(partials.buffer, index, "the partials") } }),
    };
  });
  return {
    buffers,
    request: {
      device: describe(device),
      buffers: buffers.map(({ size, usage, mapState }, index) => ({ index, size, usage, mapped: mapState !== "unmapped" })),
      gradients: described,
      clips,
    },
  };
}

function noBuffer(given: unknown, gradient: number, what: string): GradclipError {
  return new GradclipError({
    kind: "NoBuffer",
    message: `${what} of gradient ${gradient} is ${given === null ? "null" : typeof given}, but it must be a GPUBuffer`,
    gradient: { index: gradient },
    given,
    allowed: "a GPUBuffer",
  });
}

/** The limits of the device that shape a plan. */
function describe({ limits, adapterInfo }: GPUDevice): Record<string, number | boolean> {
  return {
    maxBindingsPerBindGroup: limits.maxBindingsPerBindGroup,
    maxStorageBuffersPerShaderStage: limits.maxStorageBuffersPerShaderStage,
    maxUniformBuffersPerShaderStage: limits.maxUniformBuffersPerShaderStage,
    maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
    maxBufferSize: limits.maxBufferSize,
    minStorageBufferOffsetAlignment: limits.minStorageBufferOffsetAlignment,
    maxComputeWorkgroupStorageSize: limits.maxComputeWorkgroupStorageSize,
    maxComputeInvocationsPerWorkgroup: limits.maxComputeInvocationsPerWorkgroup,
    maxComputeWorkgroupSizeX: limits.maxComputeWorkgroupSizeX,
    maxComputeWorkgroupsPerDimension: limits.maxComputeWorkgroupsPerDimension,
    // A software adapter compiles large kernels slowly. On Metal a pipeline may allow fewer invocations than the device.
    isSoftware: adapterInfo?.isFallbackAdapter ?? false,
    isMetal: adapterInfo?.vendor === "apple",
  };
}
