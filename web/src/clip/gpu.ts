// Clips on the GPU, with gradclip's package.

import type { ClipPlan } from "gradclip";

import type { Gpu } from "../device.js";
import { type Tensor, elements, size as shown } from "../tensors.js";
import type { ClipRequest, Clipped } from "./request.js";
import { type Timing, timeBatches } from "./timing.js";

/** A multiple of every element size and of the alignment of WebGPU's copies. */
const ALIGNMENT = 16;

/** A set of gradients on the GPU: ranges of one buffer. */
export class GpuClip {
  private plan!: ClipPlan;
  /** Whether `time` uses the GPU's timestamps. */
  private readonly timestamps: GPUQuerySet | null;
  private readonly buffers: GPUBuffer[] = [];
  private readonly originals: GPUBuffer;
  private readonly gradients: GPUBuffer;

  private constructor(
    private readonly gpu: Gpu,
    private readonly tensors: readonly Tensor[],
    private readonly request: ClipRequest,
    /** Where each tensor begins in the buffers, in bytes. */
    private readonly offsets: readonly number[],
    /** The bytes of a buffer. */
    private readonly size: number,
  ) {
    const { STORAGE, COPY_SRC, COPY_DST } = GPUBufferUsage;
    this.originals = this.buffer("originals", size, COPY_SRC | COPY_DST);
    this.gradients = this.buffer("gradients", size, STORAGE | COPY_SRC | COPY_DST);
    this.timestamps = gpu.timestamps ? gpu.device.createQuerySet({ type: "timestamp", count: 2 }) : null;
  }

  /** Uploads gradients and prepares the clip. */
  static async create(gpu: Gpu, tensors: readonly Tensor[], request: ClipRequest): Promise<GpuClip> {
    let size = 0;
    const offsets = tensors.map(({ bytes: { length } }) => {
      const offset = size;
      size += Math.ceil(length / ALIGNMENT) * ALIGNMENT;
      return offset;
    });
    const { maxBufferSize } = gpu.device.limits;
    if (size > maxBufferSize) {
      throw new Error(`the gradients take ${shown(size)}, but a buffer of this GPU holds at most ${shown(maxBufferSize)}`);
    }
    gpu.device.pushErrorScope("out-of-memory");
    const clip = new GpuClip(gpu, tensors, request, offsets, Math.max(size, ALIGNMENT));
    const failure = await gpu.device.popErrorScope();
    if (failure !== null) {
      clip.destroy();
      throw new Error(`the GPU has too little memory for these gradients: ${failure.message}`);
    }
    try {
      clip.upload();
      clip.plan = await gpu.clipper.prepare(
        tensors.map((tensor, index) => ({
          buffer: clip.gradients,
          dtype: tensor.dtype,
          byteOffset: clip.offsets[index],
          length: elements(tensor),
          label: tensor.name,
        })),
        request.method === "norm"
          ? { maxNorm: request.limit, normType: request.normType }
          : { byValue: request.limit },
      );
    } catch (error) {
      clip.destroy();
      throw error;
    }
    return clip;
  }

  private buffer(label: string, size: number, usage: GPUBufferUsageFlags): GPUBuffer {
    const buffer = this.gpu.device.createBuffer({ label, size, usage });
    this.buffers.push(buffer);
    return buffer;
  }

  private upload(): void {
    this.tensors.forEach(({ bytes }, index) => {
      // Queues write whole words.
      const whole = bytes.length & ~3;
      const { queue } = this.gpu.device;
      queue.writeBuffer(this.originals, this.offsets[index], bytes as Uint8Array<ArrayBuffer>, 0, whole);
      if (whole < bytes.length) {
        const rest = new Uint8Array(4);
        rest.set(bytes.subarray(whole));
        queue.writeBuffer(this.originals, this.offsets[index] + whole, rest);
      }
    });
  }

  /** Clips the gradients. */
  async clip(): Promise<Clipped> {
    const { device } = this.gpu;
    const { MAP_READ, COPY_DST } = GPUBufferUsage;
    const staging = device.createBuffer({ label: "clipped", size: this.size, usage: MAP_READ | COPY_DST });
    try {
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(this.originals, 0, this.gradients, 0, this.size);
      this.plan.encode(encoder);
      encoder.copyBufferToBuffer(this.gradients, 0, staging, 0, this.size);
      const ticket = this.request.method === "norm" ? this.plan.readBack(encoder) : null;
      device.queue.submit([encoder.finish()]);
      const record = ticket && (await ticket);
      await staging.mapAsync(GPUMapMode.READ);
      const bytes = new Uint8Array(staging.getMappedRange());
      const outputs = this.tensors.map(({ bytes: { length } }, index) =>
        bytes.slice(this.offsets[index], this.offsets[index] + length));
      return { outcome: record && { totalNorm: record.totalNorm, clipCoef: record.clipCoef }, outputs };
    } finally {
      staging.destroy();
    }
  }

  /** Measures the time of a clip. */
  async time(): Promise<Timing & { byGpu: boolean }> {
    const { device } = this.gpu;
    const { MAP_READ, COPY_DST, COPY_SRC, QUERY_RESOLVE } = GPUBufferUsage;
    const resolved = this.buffer("timestamps", 16, QUERY_RESOLVE | COPY_SRC);
    const staging = this.buffer("timestamps", 16, MAP_READ | COPY_DST);
    let byGpu = this.timestamps !== null;
    const stamp = (encoder: GPUCommandEncoder, which: Partial<GPUComputePassTimestampWrites>): void => {
      if (this.timestamps === null) return;
      encoder.beginComputePass({ timestampWrites: { querySet: this.timestamps, ...which } }).end();
    };
    const batch = async (count: number, clips: boolean): Promise<number> => {
      const encoder = device.createCommandEncoder();
      stamp(encoder, { beginningOfPassWriteIndex: 0 });
      for (let i = 0; i < count; i++) {
        encoder.copyBufferToBuffer(this.originals, 0, this.gradients, 0, this.size);
        if (clips) this.plan.encode(encoder);
      }
      stamp(encoder, { endOfPassWriteIndex: 1 });
      if (this.timestamps !== null) {
        encoder.resolveQuerySet(this.timestamps, 0, 2, resolved, 0);
        encoder.copyBufferToBuffer(resolved, 0, staging, 0, 16);
      }
      const commands = encoder.finish();
      const start = performance.now();
      device.queue.submit([commands]);
      await device.queue.onSubmittedWorkDone();
      const wall = performance.now() - start;
      if (!byGpu) return wall;
      await staging.mapAsync(GPUMapMode.READ);
      const [begin, end] = new BigUint64Array(staging.getMappedRange());
      staging.unmap();
      // Some drivers leave the timestamps of empty passes unwritten.
      if (end > begin) return Number(end - begin) / 1e6;
      byGpu = false;
      return wall;
    };
    let timing = await timeBatches(batch);
    if (this.timestamps !== null && !byGpu) timing = await timeBatches(batch);
    return { ...timing, byGpu };
  }

  destroy(): void {
    this.plan?.destroy();
    this.timestamps?.destroy();
    for (const buffer of this.buffers) buffer.destroy();
  }
}
