import type { Context } from "./context.js";
import { GradclipError } from "./errors.js";
import { COMPUTE_STAGE } from "./flags.js";
import type { PlannedClip } from "./planner.js";
import { realize, rehearse, type Realized } from "./realize.js";

/** Realizes a plan. If WebGPU rejects a buffer of the caller, the error names the first gradient in that buffer. */
export async function realizeOrName(
  context: Context,
  planned: PlannedClip,
  kept: GPUBuffer[] = [],
): Promise<Realized> {
  try {
    return await realize(context, planned, kept);
  } catch (error) {
    if (!(error instanceof GradclipError) || error.kind !== "BufferRejected") throw error;
    throw planned.refusal(await refusals(context, planned.given)) ?? error;
  }
}

/** Binds and submits each buffer on its own. Returns the error message for each; it is empty for a good buffer. */
async function refusals({ device }: Context, buffers: readonly GPUBuffer[]): Promise<string[]> {
  const layout = device.createBindGroupLayout({
    entries: [{ binding: 0, visibility: COMPUTE_STAGE, buffer: { type: "read-only-storage" } }],
  });
  const pipeline = device.createComputePipeline({
    layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
    compute: { module: device.createShaderModule({ code: "@compute @workgroup_size(1) fn main() {}" }) },
  });
  return Promise.all(
    buffers.map(async (buffer) => {
      device.pushErrorScope("validation");
      const entries = [{ binding: 0, resource: { buffer, size: 4 } }];
      const bindGroup = device.createBindGroup({ label: "gradclip.check", layout, entries });
      rehearse(device, [{ pipeline, bindGroup }]);
      return (await device.popErrorScope())?.message ?? "";
    }),
  );
}
