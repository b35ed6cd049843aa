import { GradclipError, deviceLost } from "./errors.js";
import { BufferUsage, COMPUTE_STAGE } from "./flags.js";
import type { KernelData } from "./plan_data.js";

/** The most windows of gradients that one dispatch binds. */
const MAX_SLOTS = 64;

/** The device, its loss, and the pipelines that all plans of a clipper share. */
export class Context {
  readonly device: GPUDevice;
  /** The buffer for the free slots of a dispatch. Each slot has its own range, so that no two overlap. */
  readonly filler: GPUBuffer;
  #loss: GPUDeviceLostInfo | undefined;
  /** By the text of the whole kernel. */
  readonly #pipelines = new Map<string, Promise<GPUComputePipeline>>();

  private constructor(device: GPUDevice, filler: GPUBuffer) {
    this.device = device;
    this.filler = filler;
    void device.lost.then((info) => (this.#loss = info));
  }

  static async create(device: GPUDevice): Promise<Context> {
    const size = MAX_SLOTS * Math.max(device.limits.minStorageBufferOffsetAlignment, 16);
    const descriptor = { label: "gradclip.filler", size, usage: BufferUsage.STORAGE };
    const filler = await inErrorScope(device, "the clipper", size, () => device.createBuffer(descriptor));
    const context = new Context(device, filler);
    await context.checkDevice();
    return context;
  }

  /** Throws if the device is lost. */
  async checkDevice(): Promise<void> {
    // The promise of a device that was destroyed a moment ago settles within the next microtasks.
    await Promise.race([this.device.lost, Promise.resolve().then(() => undefined)]);
    if (this.#loss !== undefined) throw deviceLost(this.#loss.message);
  }

  /** Throws if the device is known to be lost. */
  checkStillThere(): void {
    if (this.#loss !== undefined) throw deviceLost(this.#loss.message);
  }

  /** Runs `create` in error scopes. Returns its result, or throws the error that the scopes captured. */
  async inErrorScope<T>(what: string, bytes: number, create: () => T): Promise<T> {
    try {
      const created = await inErrorScope(this.device, what, bytes, create);
      // Error scopes of a lost device are silent.
      await this.checkDevice();
      return created;
    } catch (error) {
      // A lost device fails for reasons that WebGPU states in many ways.
      await this.checkDevice();
      throw error;
    }
  }

  /** Returns the pipelines of kernels. Each is compiled at its first use, without blocking the page. */
  async pipelines(kernels: KernelData[]): Promise<GPUComputePipeline[]> {
    return Promise.all(kernels.map((kernel) => this.#pipeline(kernel)));
  }

  #pipeline(kernel: KernelData): Promise<GPUComputePipeline> {
    const key = JSON.stringify(kernel);
    let pipeline = this.#pipelines.get(key);
    if (pipeline === undefined) {
      pipeline = this.#compile(kernel);
      this.#pipelines.set(key, pipeline);
      // A failure is not kept: the next plan tries again.
      pipeline.catch(() => this.#pipelines.delete(key));
    }
    return pipeline;
  }

  async #compile({ label, wgsl, constants, bindings }: KernelData): Promise<GPUComputePipeline> {
    const { device } = this;
    const { layout, module } = await this.inErrorScope("a kernel", 0, () => {
      const group = device.createBindGroupLayout({
        label,
        entries: bindings.map((type, binding) => ({
          binding,
          visibility: COMPUTE_STAGE,
          buffer: { type: bufferTypes[type] },
        })),
      });
      return {
        layout: device.createPipelineLayout({ label, bindGroupLayouts: [group] }),
        module: device.createShaderModule({ label, code: wgsl }),
      };
    });
    try {
      const compute = { module, entryPoint: "main", constants };
      return await device.createComputePipelineAsync({ label, layout, compute });
    } catch (error) {
      await this.checkDevice();
      throw new GradclipError({ kind: "KernelRejected", message: `WebGPU refused a kernel: ${messageOf(error)}` });
    }
  }
}

const bufferTypes = { read: "read-only-storage", readWrite: "storage", uniform: "uniform" } as const;

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function inErrorScope<T>(device: GPUDevice, what: string, bytes: number, create: () => T): Promise<T> {
  const scopes = ["out-of-memory", "internal", "validation"] as const;
  for (const scope of scopes) device.pushErrorScope(scope);
  let created: T | undefined;
  let thrown: unknown;
  try {
    created = create();
  } catch (error) {
    thrown = error;
  }
  // All are popped before the first is awaited, since scopes are a stack that the whole page shares.
  const popped = await Promise.all(scopes.map(() => device.popErrorScope()));
  const [validation, internal, outOfMemory] = popped;
  // A buffer that is mapped at its creation throws a RangeError if it cannot be allocated.
  if (outOfMemory || thrown instanceof RangeError) {
    const size = bytes === 0 ? "" : ` (${bytes} bytes)`;
    throw new GradclipError({ kind: "OutOfMemory", message: `the device has no memory for ${what}${size}`, given: bytes });
  }
  const error = validation ?? internal;
  if (error) {
    throw new GradclipError({ kind: "BufferRejected", message: `WebGPU refused ${what}: ${error.message}` });
  }
  if (thrown !== undefined) throw thrown;
  return created as T;
}
