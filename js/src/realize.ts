import { gpuObject } from "./checks.js";
import type { Context } from "./context.js";
import type { BufferData, Dispatch } from "./plan_data.js";
import type { PlannedClip } from "./planner.js";

/** A dispatch with its bind group. */
export interface Step {
  pipeline: GPUComputePipeline;
  bindGroup: GPUBindGroup;
  grid: [number, number];
}

/** A plan as WebGPU objects. */
export interface Realized {
  buffers: GPUBuffer[];
  /** The dispatches, in the order of the plan. */
  steps: Step[];
}

/**
 * Creates the pipelines, buffers and bind groups of a plan: all of them, or none if WebGPU rejects one.
 *
 * `kept` are the buffers that a rebind takes over from the old plan, in order.
 */
export async function realize(
  context: Context,
  planned: PlannedClip,
  kept: GPUBuffer[],
): Promise<Realized> {
  const { device } = context;
  const { data, given } = planned;
  const contents = planned.takeContents();
  const pipelines = await context.pipelines(data.kernels);
  const created: GPUBuffer[] = [];

  const bufferOf = (buffer: BufferData): GPUBuffer => {
    const keeps = buffer.isKept ? kept.shift() : undefined;
    if (keeps !== undefined) return keeps;
    const made = createBuffer(device, buffer, contents);
    created.push(made);
    return made;
  };
  const make = (): Realized => {
    const buffers = data.buffers.map(bufferOf);
    const stepOf = ({ kernel, grid, bindings }: Dispatch): Step => {
      const pipeline = pipelines[kernel]!;
      const entries = bindings.map(({ whose, index, offset, size }, binding) => {
        const buffer = whose === "filler" ? context.filler : (whose === "own" ? buffers : given)[index]!;
        return { binding, resource: { buffer, offset, size } };
      });
      const layout = pipeline.getBindGroupLayout(0);
      return { pipeline, grid, bindGroup: device.createBindGroup({ label: pipeline.label, layout, entries }) };
    };
    const steps = data.dispatches.map(stepOf);
    rehearse(device, steps);
    return { buffers, steps };
  };
  try {
    const bytes = data.buffers.reduce((sum, { size }) => sum + size, 0);
    return await context.inErrorScope("a clip plan", bytes, make);
  } catch (error) {
    for (const buffer of created) buffer.destroy();
    throw error;
  }
}

function createBuffer(device: GPUDevice, { label, usage, size, contents: at }: BufferData, contents: Uint32Array): GPUBuffer {
  if (at === undefined) return device.createBuffer({ label, usage, size });
  const buffer = device.createBuffer({ label, usage, size, mappedAtCreation: true });
  new Uint32Array(buffer.getMappedRange()).set(contents.subarray(at, at + size / 4));
  buffer.unmap();
  return buffer;
}

/** Encodes dispatches. */
export function encodeSteps(pass: GPUComputePassEncoder, steps: Iterable<Step>): void {
  gpuObject<GPUComputePassEncoder>({}, "the pass", pass, "dispatchWorkgroups", "a GPUComputePassEncoder");
  let current: GPUComputePipeline | undefined;
  for (const { pipeline, bindGroup, grid } of steps) {
    // Without records there is nothing to finalize.
    if (grid[0] === 0) continue;
    if (pipeline !== current) pass.setPipeline(pipeline);
    current = pipeline;
    pass.setBindGroup(0, bindGroup);
    pass.dispatchWorkgroups(...grid);
  }
}

/**
 * Submits the bind groups of the dispatches, without the dispatches, so that WebGPU checks them. Only a submission finds a
 * buffer that was destroyed. Otherwise WebGPU would reject the first step, with all its other commands.
 */
export function rehearse(device: GPUDevice, steps: Iterable<Pick<Step, "pipeline" | "bindGroup">>): void {
  const encoder = device.createCommandEncoder({ label: "gradclip.rehearsal" });
  const pass = encoder.beginComputePass();
  for (const { pipeline, bindGroup } of steps) {
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, bindGroup);
  }
  pass.end();
  device.queue.submit([encoder.finish()]);
}
