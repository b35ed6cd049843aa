import init, { Failure, Plan, type InitInput, type Write } from "./planner/gradclip_planner.js";
import { fromPlanner, type GradclipError } from "./errors.js";
import { buildClip } from "./clip_builder.js";
import { Numbering, buildGradient } from "./gradient_builder.js";
import { planData, type PlanData } from "./plan_data.js";
import { decoders, type ResultName, type Results } from "./records.js";

/** The source of the planner's wasm. The default is the file beside this module. */
export type WasmSource = InitInput | Promise<InitInput>;

let loading: Promise<unknown> | undefined;

/** Loads the planner, the Rust crate without wgpu compiled to wasm, unless it is loaded already. */
export function loadPlanner(source?: WasmSource): Promise<unknown> {
  loading ??= load(source).catch((error: unknown) => {
    // The next call tries again.
    loading = undefined;
    throw error;
  });
  return loading;
}

async function load(source?: WasmSource): Promise<unknown> {
  // Bundlers recognise this form.
  const url = new URL("./planner/gradclip_planner_bg.wasm", import.meta.url);
  return init({ module_or_path: source ?? (await fromDisk(url)) ?? url });
}

/** Reads a file if modules are files, as under Node, whose `fetch` cannot read files. In a page it returns undefined. */
async function fromDisk(url: URL): Promise<Uint8Array<ArrayBuffer> | undefined> {
  if (url.protocol !== "file:") return undefined;
  // An import would make bundlers look for the module.
  const { process } = globalThis as { process?: { getBuiltinModule?: (name: string) => unknown } };
  const fs = process?.getBuiltinModule?.("node:fs/promises") as
    | { readFile: (path: URL) => Promise<Uint8Array<ArrayBuffer>> }
    | undefined;
  return fs?.readFile(url);
}

/**
 * A plan in the planner's memory: its description, its updates, and the decoding of its results. The garbage collector frees
 * it, since a ticket may outlive its `ClipPlan`.
 */
export class PlannedClip {
  readonly data: PlanData;
  /** The buffers of the caller that the plan uses. Its bindings index these. */
  readonly given: readonly GPUBuffer[];
  readonly #plan: Plan;

  private constructor(plan: Plan, { buffers }: Numbering) {
    this.#plan = plan;
    this.given = Array.from(plan.given(), (index) => buffers[index]!);
    this.data = planData(plan.takeNumbers(), plan.takeTexts());
  }

  static plan(device: GPUDevice, gradients: readonly unknown[], clips: readonly unknown[]): PlannedClip {
    return called(() => {
      const numbering = new Numbering();
      const built = gradients.map((gradient, index) => buildGradient(gradient, index, numbering));
      const plan = new Plan(describe(device), numbering.numbers(), built, clips.map(buildClip));
      return new PlannedClip(plan, numbering);
    });
  }

  /** Plans the same clip of gradients that have moved. */
  rebound(gradients: readonly unknown[]): PlannedClip {
    return called(() => {
      const numbering = new Numbering();
      const built = gradients.map((gradient, index) => buildGradient(gradient, index, numbering));
      return new PlannedClip(this.#plan.rebound(numbering.numbers(), built), numbering);
    });
  }

  /** Returns the initial contents of all buffers, one after the other. They may be large, so only the first call returns them. */
  takeContents(): Uint32Array {
    return this.#plan.takeContents();
  }

  /** Returns the index of the buffer with a result. */
  bufferOf(what: ResultName): number {
    return called(() => this.#plan.bufferOf(what));
  }

  /** Decodes a result. */
  decode<N extends ResultName>(what: N, bytes: ArrayBuffer): Results[N] {
    return decoders[what](called(() => this.#plan.decode(what, new Uint8Array(bytes))));
  }

  /** Returns the writes of an update, or the places to copy a number to. */
  writes(update: (plan: Plan) => Write[]): Write[] {
    return called(() => update(this.#plan));
  }

  /** Returns the error for the first gradient with a rejected buffer. The message of a good buffer is empty. */
  refusal(messages: string[]): GradclipError | undefined {
    const failure = this.#plan.refusal(messages);
    return failure && fromPlanner(failure);
  }
}

/** The limits of the device that shape a plan, in the order of the planner's `describe.rs`. */
function describe({ limits, adapterInfo }: GPUDevice): Float64Array {
  return new Float64Array([
    limits.minStorageBufferOffsetAlignment,
    limits.maxComputeWorkgroupSizeX,
    limits.maxComputeInvocationsPerWorkgroup,
    limits.maxComputeWorkgroupStorageSize,
    limits.maxComputeWorkgroupsPerDimension,
    limits.maxStorageBuffersPerShaderStage,
    limits.maxUniformBuffersPerShaderStage,
    limits.maxBindingsPerBindGroup,
    limits.maxStorageBufferBindingSize,
    limits.maxBufferSize,
    // A software adapter compiles large kernels slowly. On Metal a pipeline may allow fewer invocations than the device.
    adapterInfo?.isFallbackAdapter ? 1 : 0,
    adapterInfo?.vendor === "apple" ? 1 : 0,
  ]);
}

function called<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw error instanceof Failure ? fromPlanner(error) : error;
  }
}
