import type { Context } from "./context.js";
import { GradclipError } from "./errors.js";
import { BufferUsage } from "./flags.js";
import type { DynamicLossScale, Gradient } from "./options.js";
import { writeLossScale } from "./clip_builder.js";
import { count, fields, gpuObject, iterable, list, number, size } from "./checks.js";
import type { Request } from "./message.js";
import { PlannedClip, type Target, type Update } from "./planner.js";
import { encodeSteps, type Realized, type Step } from "./realize.js";
import { writeCounts, writeHistories, writeWindows } from "./records.js";
import type { ClipRecord, NormHistory, NormWindow, ResultName, Results, StepCounts, TensorStats } from "./records.js";
import { realizeOrName } from "./refusals.js";
import { ReadableBuffer } from "./readable.js";
import { Ticket } from "./ticket.js";

/** The source of a copied number: 4 bytes of a buffer with the usage `COPY_SRC`. */
interface Source {
  buffer: GPUBuffer;
  byteOffset?: number;
}

/** A clip of one set of gradients: prepared once by `Clipper.prepare`, encoded at every step. */
export class ClipPlan {
  readonly #context: Context;
  #planned: PlannedClip;
  #realized: Realized;
  /** The buffers that the host has read, by their index. */
  #readable = new Map<number, ReadableBuffer>();
  #destroyed = false;

  private constructor(context: Context, planned: PlannedClip, realized: Realized) {
    this.#context = context;
    this.#planned = planned;
    this.#realized = realized;
  }

  /** @internal `Clipper.prepare` is the way in. */
  static async prepare(context: Context, gradients: readonly unknown[], clips: readonly unknown[]): Promise<ClipPlan> {
    await context.checkDevice();
    const planned = PlannedClip.plan(context.device, gradients, clips);
    return new ClipPlan(context, planned, await realizeOrName(context, planned));
  }

  /** Measures the gradients and clips them. It begins one or two compute passes; `encodeInto` takes yours. */
  encode(encoder: GPUCommandEncoder): void {
    if (this.#planned.data.wantsTwoPasses) {
      this.encodeNorm(encoder);
      this.encodeScale(encoder);
    } else {
      inPass(encoder, "gradclip", this.#steps(this.#planned.data.all));
    }
  }

  /** Encodes only the first half of `encode`: measures the norm and writes the record. */
  encodeNorm(encoder: GPUCommandEncoder): void {
    inPass(encoder, "gradclip.norm", this.#steps(this.#planned.data.norm));
  }

  /** Encodes only the second half: multiplies the gradients by the factor of the record, or clamps them. */
  encodeScale(encoder: GPUCommandEncoder): void {
    inPass(encoder, "gradclip.scale", this.#steps(this.#planned.data.scale));
  }

  /**
   * Encodes only the measurement of the gradients with this `part`, right after the kernels that produce them.
   * `encodeRecord` follows when all parts are measured, and then `encodeScale`.
   */
  encodePart(encoder: GPUCommandEncoder, part: number): void {
    inPass(encoder, "gradclip.part", this.#part(part));
  }

  /** Encodes the dispatches that make the record from all parts, and from the partials of your own kernels. */
  encodeRecord(encoder: GPUCommandEncoder): void {
    inPass(encoder, "gradclip.record", this.#record());
  }

  /** `encode` in a compute pass that you have begun. It sets the pipeline and bind group 0, and leaves both set. */
  encodeInto(pass: GPUComputePassEncoder): void {
    encodeSteps(pass, this.#steps(this.#planned.data.all));
  }

  /** `encodeNorm` in a compute pass that you have begun. */
  encodeNormInto(pass: GPUComputePassEncoder): void {
    encodeSteps(pass, this.#steps(this.#planned.data.norm));
  }

  /** `encodeScale` in a compute pass that you have begun. */
  encodeScaleInto(pass: GPUComputePassEncoder): void {
    encodeSteps(pass, this.#steps(this.#planned.data.scale));
  }

  /** `encodePart` in a compute pass that you have begun. */
  encodePartInto(pass: GPUComputePassEncoder, part: number): void {
    encodeSteps(pass, this.#part(part));
  }

  /** `encodeRecord` in a compute pass that you have begun. */
  encodeRecordInto(pass: GPUComputePassEncoder): void {
    encodeSteps(pass, this.#record());
  }

  /** The number of dispatches of `encode`. */
  get dispatches(): number {
    return this.#planned.data.all.length;
  }

  /** The number of parts in which the gradients are measured; 0 if no gradient is in a part. */
  get parts(): number {
    return this.#planned.data.parts.length;
  }

  /** The number of records: one for each group; or one for each gradient, row or column that is clipped on its own. */
  get records(): number {
    return this.#planned.data.records;
  }

  /** The device memory of the plan in bytes. */
  get scratchBytes(): number {
    return this.#planned.data.buffers.reduce((sum, { size }) => sum + size, 0);
  }

  /**
   * The buffer with the records, 40 bytes each. A shader binds it as storage, or as uniform if there is a single record. It can
   * be copied from. Undefined for a clip by value, which measures nothing.
   */
  get recordBuffer(): GPUBuffer | undefined {
    return this.#bufferOf("records");
  }

  /** The buffer with the statistics of each gradient, 16 bytes each. Undefined without `tensorStats`. */
  get tensorStatsBuffer(): GPUBuffer | undefined {
    return this.#bufferOf("tensorStats");
  }

  /** The buffer with the step counts of each record, 24 bytes each. Undefined if the clip keeps none. */
  get stepCountsBuffer(): GPUBuffer | undefined {
    return this.#bufferOf("stepCounts");
  }

  /** The buffer that begins with the dynamic loss scale, an f32, for the shader of the loss. Undefined without one. */
  get lossScaleBuffer(): GPUBuffer | undefined {
    return this.#bufferOf("lossScale");
  }

  /**
   * Encodes a copy of the first record at this point of the encoder. Await the ticket after the submission. Any number of
   * tickets may be in flight.
   */
  readBack(encoder: GPUCommandEncoder): Ticket<ClipRecord> {
    return this.#readBack(encoder, "record");
  }

  /** `readBack` of all records. */
  readBackAll(encoder: GPUCommandEncoder): Ticket<ClipRecord[]> {
    return this.#readBack(encoder, "records");
  }

  /** `readBack` of the statistics of each gradient, for a clip with `tensorStats`. */
  readBackTensorStats(encoder: GPUCommandEncoder): Ticket<TensorStats[]> {
    return this.#readBack(encoder, "tensorStats");
  }

  /** `readBack` of the counts of each record, for a clip with `countSteps`, `skipAbove` or `dynamicLossScale`. */
  readBackStepCounts(encoder: GPUCommandEncoder): Ticket<StepCounts[]> {
    return this.#readBack(encoder, "stepCounts");
  }

  /** `readBack` of the dynamic loss scale, to save with a checkpoint or to log. */
  readBackLossScale(encoder: GPUCommandEncoder): Ticket<Required<DynamicLossScale>> {
    return this.#readBack(encoder, "lossScale");
  }

  /** `readBack` of the norm histories of a `zClip`, one for each record, to save with a checkpoint. */
  readBackHistories(encoder: GPUCommandEncoder): Ticket<NormHistory[]> {
    return this.#readBack(encoder, "histories");
  }

  /** `readBack` of the last norms of an `autoClip`, one window for each record, to save with a checkpoint. */
  readBackNormWindows(encoder: GPUCommandEncoder): Ticket<NormWindow[]> {
    return this.#readBack(encoder, "normWindows");
  }

  /** Changes the limits of all groups, for every command buffer that is submitted afterwards. */
  setMaxNorms(maxNorms: readonly number[]): void {
    this.#update("setMaxNorms", (request) =>
      request.list(list({}, "maxNorms", maxNorms), (limit) => request.number(number({}, "the limit", limit))),
    );
  }

  /** Changes the loss scale, for every command buffer that is submitted afterwards. */
  setLossScale(lossScale: number): void {
    this.#update("setLossScale", (request) => request.number(number({}, "lossScale", lossScale)));
  }

  /** Replaces the dynamic loss scale, to restore a checkpoint. */
  setDynamicLossScale(dynamicLossScale: DynamicLossScale): void {
    this.#update("setDynamicLossScale", (request) => writeLossScale(request, {}, dynamicLossScale));
  }

  /** Replaces the step counts, one for each record, to restore a checkpoint. */
  setStepCounts(stepCounts: readonly StepCounts[]): void {
    this.#update("setStepCounts", (request) => writeCounts(request, stepCounts));
  }

  /** Replaces the norm histories of a `zClip`, one for each record, to restore a checkpoint. */
  setHistories(histories: readonly NormHistory[]): void {
    this.#update("setHistories", (request) => writeHistories(request, histories));
  }

  /** Replaces the norm windows of an `autoClip`, one for each record, to restore a checkpoint. */
  setNormWindows(normWindows: readonly NormWindow[]): void {
    this.#update("setNormWindows", (request) => writeWindows(request, normWindows));
  }

  /** Supplies the norm of a clip with `bySuppliedNorm`, for every command buffer that is submitted afterwards. */
  supplyNorm(suppliedNorm: number): void {
    this.#update("supplyNorm", (request) => request.number(number({}, "the norm", suppliedNorm)));
  }

  /** Encodes a copy of the norm for `bySuppliedNorm`, an f32, from a buffer of yours, such as another plan's record. */
  copyNorm(encoder: GPUCommandEncoder, source: Source): void {
    this.#copy(encoder, source, "suppliedNorm");
  }

  /** Encodes a copy of the limit of a group, an f32, from a buffer of yours. The value is not checked. */
  copyMaxNorm(encoder: GPUCommandEncoder, group: number, source: Source): void {
    this.#copy(encoder, source, "maxNorm", (request) => request.number(count({}, "group", group)));
  }

  /** Encodes a copy of the inverse of the loss scale, an f32, from a buffer of yours. The value is not checked. */
  copyInverseLossScale(encoder: GPUCommandEncoder, source: Source): void {
    this.#copy(encoder, source, "inverseLossScale");
  }

  /**
   * Replaces the buffers and ranges of the gradients, for a trainer whose gradients move. All state stays: limits, the loss
   * scale, histories, counts, `recordBuffer`. On an error the plan is unchanged.
   */
  async rebind(gradients: Iterable<Gradient>): Promise<void> {
    const { buffers: old } = this.#alive();
    const planned = this.#planned.rebound(iterable("the list of gradients", gradients));
    const kept = old.filter((_, index) => this.#planned.data.buffers[index]!.isKept);
    // Command buffers that were encoded before may still use the other buffers, which are left to the garbage collector.
    const realized = await realizeOrName(this.#context, planned, kept).catch((error: unknown) => {
      // WebGPU refuses the buffers of a plan that was destroyed meanwhile.
      this.#alive();
      throw error;
    });
    if (this.#destroyed) for (const buffer of realized.buffers) buffer.destroy();
    this.#alive();
    for (const readable of this.#readable.values()) readable.destroy();
    [this.#planned, this.#realized, this.#readable] = [planned, realized, new Map()];
  }

  /** Frees the memory of the plan. Submit all command buffers with its dispatches first. */
  destroy(): void {
    if (this.#destroyed) return;
    this.#destroyed = true;
    for (const buffer of this.#realized.buffers) buffer.destroy();
    for (const readable of this.#readable.values()) readable.destroy();
  }

  #alive(): Realized {
    if (this.#destroyed) throw new GradclipError({ kind: "Destroyed", message: "the plan was destroyed" });
    return this.#realized;
  }

  #steps(indices: readonly number[]): Step[] {
    const { steps } = this.#alive();
    return indices.map((index) => steps[index]!);
  }

  #part(part: number): Step[] {
    const { parts } = this.#planned.data;
    const steps = parts[count({}, "the part", part)];
    if (steps !== undefined) return this.#steps(steps);
    const allowed =
      parts.length === 0 ? "this plan is not measured in parts; see Gradient.part" : `the parts are 0 to ${parts.length - 1}`;
    throw new GradclipError({ kind: "NoSuchPart", message: `there is no part ${part}: ${allowed}`, given: part, allowed });
  }

  #record(): Step[] {
    const { record } = this.#planned.data;
    if (record !== undefined) return this.#steps(record);
    const message = "encodeRecord is for gradients in parts or with partials of your own; encode encodeNorm instead";
    throw new GradclipError({ kind: "NoSuchPart", message });
  }

  #bufferOf(what: ResultName): GPUBuffer | undefined {
    const { buffers } = this.#alive();
    try {
      return buffers[this.#planned.bufferOf(what)];
    } catch {
      return undefined;
    }
  }

  #readBack<N extends ResultName>(encoder: GPUCommandEncoder, what: N): Ticket<Results[N]> {
    const { buffers } = this.#alive();
    checkEncoder(encoder);
    const planned = this.#planned;
    try {
      const index = planned.bufferOf(what);
      let readable = this.#readable.get(index);
      if (readable === undefined) {
        readable = new ReadableBuffer(this.#context, buffers[index]!, planned.data.buffers[index]!.readable ?? 0);
        this.#readable.set(index, readable);
      }
      return readable.readBack(encoder, (bytes) => planned.decode(what, bytes));
    } catch (error) {
      return new Ticket<Results[N]>(() => Promise.reject(error));
    }
  }

  #update(operation: Update, write: (request: Request) => unknown): void {
    const { buffers } = this.#alive();
    this.#context.checkStillThere();
    for (const { buffer, offset, bytes } of this.#planned.writes(operation, write)) {
      this.#context.device.queue.writeBuffer(buffers[buffer]!, offset, bytes);
    }
  }

  #copy(encoder: GPUCommandEncoder, source: Source, target: Target, write: (request: Request) => unknown = () => {}): void {
    const { buffers } = this.#alive();
    checkEncoder(encoder);
    const given = fields({}, "the source", source, ["buffer", "byteOffset"]);
    const buffer = gpuObject<GPUBuffer>({}, "the buffer of the source", given.buffer, "mapState", "a GPUBuffer");
    const byteOffset = size({}, "byteOffset", given.byteOffset === undefined ? 0 : given.byteOffset);
    const targets = this.#planned.writes(target, write);
    const fits = byteOffset % 4 === 0 && byteOffset + 4 <= buffer.size;
    if (!fits || (buffer.usage & BufferUsage.COPY_SRC) === 0) {
      throw new GradclipError({
        kind: "CopySource",
        message:
          `4 bytes at offset ${byteOffset} cannot be copied from a buffer of ${buffer.size} bytes with the usage ` +
          `${buffer.usage}: the buffer needs COPY_SRC and must hold all 4 bytes, and the offset must be a multiple of 4`,
        given: { byteOffset, size: buffer.size, usage: buffer.usage },
      });
    }
    for (const { buffer: to, offset } of targets) encoder.copyBufferToBuffer(buffer, byteOffset, buffers[to]!, offset, 4);
  }
}

function checkEncoder(encoder: GPUCommandEncoder): void {
  gpuObject<GPUCommandEncoder>({}, "the encoder", encoder, "beginComputePass", "a GPUCommandEncoder");
}

function inPass(encoder: GPUCommandEncoder, label: string, steps: Step[]): void {
  checkEncoder(encoder);
  if (steps.length === 0) return;
  const pass = encoder.beginComputePass({ label });
  encodeSteps(pass, steps);
  pass.end();
}
