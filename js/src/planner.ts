import init, { Failure, Plan, type InitInput, type Write } from "./planner/gradclip_planner.js";
import { fromPlanner, type GradclipError } from "./errors.js";
import { buildClip } from "./clip_builder.js";
import { Numbering, buildGradient } from "./gradient_builder.js";
import { planData, type PlanData } from "./plan_data.js";
import { decoders, type ResultName, type Results } from "./records.js";

/** Where the planner's wasm comes from: by default the file beside this module. */
export type WasmSource = InitInput | Promise<InitInput>;

let loading: Promise<unknown> | undefined;

/** Loads the planner: the Rust crate without wgpu, compiled to wasm. It is loaded once. */
export function loadPlanner(source?: WasmSource): Promise<unknown> {
  loading ??= load(source).catch((error: unknown) => {
    // The next call tries again.
    loading = undefined;
    throw error;
  });
  return loading;
}

async function load(source?: WasmSource): Promise<unknown> {
  // Bundlers look for this form.
  const url = new URL("./planner/gradclip_planner_bg.wasm", import.meta.url);
  return init({ module_or_path: source ?? (await fromDisk(url)) ?? url });
}

/** Reads a file where modules are files, as under Node, whose `fetch` reads none. In a page it returns undefined. */
async function fromDisk(url: URL): Promise<Uint8Array<ArrayBuffer> | undefined> {
  if (url.protocol !== "file:") return undefined;
  // Not an import, which bundlers would try to resolve.
  const { process } = globalThis as { process?: { getBuiltinModule?: (name: string) => unknown } };
  const fs = process?.getBuiltinModule?.("node:fs/promises") as
    | { readFile: (path: URL) => Promise<Uint8Array<ArrayBuffer>> }
    | undefined;
  return fs?.readFile(url);
}

/**
 * A plan in the planner's memory: what it describes, how it is updated, and how its results are read. The garbage collector
 * frees it, since a ticket may still need it when its `ClipPlan` is gone.
 */
export class PlannedClip {
  readonly data: PlanData;
  /** The buffers of the caller that the plan uses. Its bindings count these. */
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
      const whereIs = (group: number) => (clips.length > 1 ? { group } : {});
      const builders = clips.map((clip, group) => buildClip(clip, whereIs(group)));
      const plan = new Plan(describe(device), numbering.numbers(), built, builders);
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

  /** Returns the initial contents of all buffers, one after the other. They may be large, and only the first call has them. */
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

  /** Returns the writes of an update, or the places of a number to copy. */
  writes(update: (plan: Plan) => Write[]): Write[] {
    return called(() => update(this.#plan));
  }

  /** Returns the error about the first gradient one of whose buffers is refused. Good buffers have empty messages. */
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
