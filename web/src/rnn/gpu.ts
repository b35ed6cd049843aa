// The network in plain WebGPU. A step is four dispatches and a clip in one compute pass, without a host stall.

import {
  ADAM, BATCH, HIDDEN, LENGTH, MAX_STEPS_AT_ONCE, PARAMETERS, TENSORS, initialParameters,
  type Run, type Settings, type StepResult,
} from "./model.js";

/** The part of gradclip's plan that a training loop needs. */
export interface GradientClip {
  /** Encodes the clip, in place. */
  encodeInto(pass: GPUComputePassEncoder): void;
  /** The record: total norm and coefficient are its first two words. */
  readonly recordBuffer: GPUBuffer;
  setMaxNorms(maxNorms: readonly number[]): void;
  destroy(): void;
}

/** A gradient in a buffer. */
export interface GradientRange {
  buffer: GPUBuffer;
  /** In bytes. */
  byteOffset: number;
  /** In elements. */
  length: number;
  label: string;
}

/** Prepares gradclip's plan for the gradients of a run. */
export type PrepareClip = (gradients: GradientRange[], maxNorm: number) => Promise<GradientClip>;

const SOURCES = ["sequence", "gradients", "adam"] as const;
type Kernel = (typeof SOURCES)[number];

/** Text that precedes every kernel: the constants of model.ts. */
const CONSTANTS = `
const HIDDEN = ${HIDDEN}u;
const LENGTH = ${LENGTH}u;
const BATCH = ${BATCH}u;
const PARAMETERS = ${PARAMETERS}u;
const RECURRENT = ${TENSORS[1].offset}u;
const BIAS = ${TENSORS[2].offset}u;
const OUTPUT = ${TENSORS[3].offset}u;
const OUTPUT_BIAS = ${TENSORS[4].offset}u;
const MAX_STEPS_AT_ONCE = ${MAX_STEPS_AT_ONCE}u;
const ADAM_FIRST = ${ADAM.first};
const ADAM_SECOND = ${ADAM.second};
const ADAM_EPSILON = ${ADAM.epsilon};
struct Settings {
    seed: u32,
    learning_rate: f32,
}
`;

/** The pipelines, which all runs on a device share. */
export class RnnKernels {
  private constructor(readonly device: GPUDevice, readonly pipelines: Record<Kernel, GPUComputePipeline>) {}

  /** Compiles the kernels. `source` loads the text of one. */
  static async create(device: GPUDevice, source: (name: string) => Promise<string>): Promise<RnnKernels> {
    const compile = async (name: Kernel): Promise<[Kernel, GPUComputePipeline]> => {
      const module = device.createShaderModule({ label: name, code: CONSTANTS + (await source(`${name}.wgsl`)) });
      return [name, await device.createComputePipelineAsync({ label: name, layout: "auto", compute: { module } })];
    };
    const pipelines = Object.fromEntries(await Promise.all(SOURCES.map(compile)));
    return new RnnKernels(device, pipelines as Record<Kernel, GPUComputePipeline>);
  }
}

/** A network that trains on the GPU. */
export class GpuRun implements Run {
  private readonly buffers: GPUBuffer[] = [];
  private step = 0;
  private learningRate: number;

  private readonly settings: GPUBuffer;
  private readonly history: GPUBuffer;
  private readonly staging: GPUBuffer;
  private readonly parameters: GPUBuffer;
  private readonly gradients: GPUBuffer;
  private clip!: GradientClip;
  private groups!: Record<Kernel, GPUBindGroup>;

  private constructor(private readonly kernels: RnnKernels, private readonly initial: Settings) {
    const { STORAGE, UNIFORM, COPY_DST, COPY_SRC, MAP_READ } = GPUBufferUsage;
    this.learningRate = initial.learningRate;
    this.settings = this.buffer("settings", 2, UNIFORM | COPY_DST);
    this.parameters = this.buffer("parameters", PARAMETERS, STORAGE | COPY_DST | COPY_SRC);
    this.gradients = this.buffer("gradients", PARAMETERS, STORAGE | COPY_SRC);
    this.history = this.buffer("history", 3 * MAX_STEPS_AT_ONCE, STORAGE | COPY_SRC);
    this.staging = this.buffer("staging", 3 * MAX_STEPS_AT_ONCE, MAP_READ | COPY_DST);
    kernels.device.queue.writeBuffer(this.parameters, 0, initialParameters(initial.seed, initial.gain));
    this.writeSettings();
  }

  static async create(kernels: RnnKernels, settings: Settings, prepareClip: PrepareClip): Promise<GpuRun> {
    const run = new GpuRun(kernels, settings);
    const ranges = TENSORS.map(({ name, offset, length }) => ({
      buffer: run.gradients, byteOffset: 4 * offset, length, label: name,
    }));
    run.clip = await prepareClip(ranges, settings.maxNorm);
    run.bind();
    return run;
  }

  private buffer(label: string, words: number, usage: GPUBufferUsageFlags): GPUBuffer {
    const buffer = this.kernels.device.createBuffer({ label, size: 4 * words, usage });
    this.buffers.push(buffer);
    return buffer;
  }

  private bind(): void {
    const { STORAGE } = GPUBufferUsage;
    const states = BATCH * LENGTH * HIDDEN;
    const step = this.buffer("step", 1, STORAGE);
    const hidden = this.buffer("hidden", states, STORAGE);
    const deltas = this.buffer("deltas", states, STORAGE);
    const inputs = this.buffer("inputs", 2 * BATCH * LENGTH, STORAGE);
    const errors = this.buffer("errors", BATCH, STORAGE);
    const moments = this.buffer("moments", 2 * PARAMETERS, STORAGE);
    const { settings, parameters, gradients, history } = this;
    const group = (kernel: Kernel, buffers: GPUBuffer[]): GPUBindGroup =>
      this.kernels.device.createBindGroup({
        label: kernel,
        layout: this.kernels.pipelines[kernel].getBindGroupLayout(0),
        entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })),
      });
    this.groups = {
      sequence: group("sequence", [settings, step, parameters, hidden, deltas, inputs, errors]),
      gradients: group("gradients", [step, hidden, deltas, inputs, errors, gradients]),
      adam: group("adam", [settings, step, gradients, errors, this.clip.recordBuffer, moments, parameters, history]),
    };
  }

  private writeSettings(): void {
    const words = new ArrayBuffer(8);
    new Uint32Array(words)[0] = this.initial.seed;
    new Float32Array(words)[1] = this.learningRate;
    this.kernels.device.queue.writeBuffer(this.settings, 0, words);
  }

  async train(count: number): Promise<StepResult[]> {
    const { device, pipelines } = this.kernels;
    const encoder = device.createCommandEncoder({ label: "training steps" });
    const pass = encoder.beginComputePass();
    const dispatch = (kernel: Kernel, workgroups: number): void => {
      pass.setPipeline(pipelines[kernel]);
      pass.setBindGroup(0, this.groups[kernel]);
      pass.dispatchWorkgroups(workgroups);
    };
    for (let i = 0; i < count; i++) {
      dispatch("sequence", BATCH);
      dispatch("gradients", Math.ceil(PARAMETERS / 64));
      this.clip.encodeInto(pass);
      dispatch("adam", Math.ceil(PARAMETERS / 64));
    }
    pass.end();
    encoder.copyBufferToBuffer(this.history, 0, this.staging, 0, this.staging.size);
    device.queue.submit([encoder.finish()]);
    await this.staging.mapAsync(GPUMapMode.READ);
    const words = new Float32Array(this.staging.getMappedRange());
    const results = Array.from({ length: count }, (_, i) => {
      const at = 3 * ((this.step + i) % MAX_STEPS_AT_ONCE);
      return { loss: words[at], norm: words[at + 1], coefficient: words[at + 2] };
    });
    this.staging.unmap();
    this.step += count;
    return results;
  }

  setLearningRate(learningRate: number): void {
    this.learningRate = learningRate;
    this.writeSettings();
  }

  setMaxNorm(maxNorm: number): void {
    this.clip.setMaxNorms([maxNorm]);
  }

  /** Copies parameters or gradients to the host, for tests. */
  async read(which: "parameters" | "gradients"): Promise<Float32Array> {
    const { device } = this.kernels;
    const staging = device.createBuffer({ size: 4 * PARAMETERS, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    const encoder = device.createCommandEncoder();
    encoder.copyBufferToBuffer(this[which], 0, staging, 0, staging.size);
    device.queue.submit([encoder.finish()]);
    await staging.mapAsync(GPUMapMode.READ);
    const words = new Float32Array(staging.getMappedRange()).slice();
    staging.destroy();
    return words;
  }

  destroy(): void {
    this.clip.destroy();
    for (const buffer of this.buffers) buffer.destroy();
  }
}
