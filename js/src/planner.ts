import { buildClip } from "./clip_builder.js";
import { readError, type GradclipError } from "./errors.js";
import { Numbering, buildGradient } from "./gradient_builder.js";
import { Answer, Request } from "./message.js";
import { planData, type PlanData } from "./plan_data.js";
import { decoders, RESULTS, type ResultName, type Results } from "./records.js";

/** The wasm of the planner: where it is, or what it is. */
type Input = string | URL | globalThis.Request | Response | BufferSource | WebAssembly.Module;

/** Where the planner's wasm comes from: by default the file beside this module. */
export type WasmSource = Input | Promise<Input>;

/** The operations that update a plan, and those that tell where a number of it is. */
const UPDATES = [
  "setMaxNorms",
  "setLossScale",
  "setDynamicLossScale",
  "setStepCounts",
  "setHistories",
  "setNormWindows",
  "supplyNorm",
] as const;
const TARGETS = ["maxNorm", "suppliedNorm", "inverseLossScale"] as const;

export type Update = (typeof UPDATES)[number];
export type Target = (typeof TARGETS)[number];

/** The operations of the planner, in the order of its `lib.rs`. */
const OPERATIONS = [
  "plan",
  "rebound",
  "takeContents",
  "refusal",
  "bufferOf",
  "decode",
  ...UPDATES,
  ...TARGETS,
] as const;

type Operation = (typeof OPERATIONS)[number];

/** What the planner exports. A plan and a reply are addresses; 0 is no plan. */
interface Planner {
  memory: WebAssembly.Memory;
  reserve(words: number): number;
  call(operation: number, plan: number, request: number, words: number, numbers: number): number;
  release(reply: number): void;
  forget(plan: number): void;
}

let loading: Promise<unknown> | undefined;
let planner: Planner;

/** Loads the planner: the Rust crate without wgpu, compiled to wasm. It is loaded once. */
export function loadPlanner(source?: WasmSource): Promise<unknown> {
  loading ??= load(source).catch((error: unknown) => {
    // The next call tries again.
    loading = undefined;
    throw error;
  });
  return loading;
}

async function load(source?: WasmSource): Promise<void> {
  // Bundlers look for this form.
  const url = new URL("./planner.wasm", import.meta.url);
  let input = (await source) ?? (await fromDisk(url)) ?? url;
  if (typeof input === "string" || input instanceof URL || input instanceof globalThis.Request) input = await fetch(input);
  if (input instanceof Response && !input.ok) throw new Error(`${input.url}: ${input.status} ${input.statusText}`);
  const module = input instanceof WebAssembly.Module ? input : await compile(input);
  planner = (await WebAssembly.instantiate(module)).exports as unknown as Planner;
}

function compile(input: Response | BufferSource): Promise<WebAssembly.Module> {
  if (!(input instanceof Response)) return WebAssembly.compile(input);
  // Streaming needs the type, which not every server sends.
  return input.headers.get("content-type")?.startsWith("application/wasm")
    ? WebAssembly.compileStreaming(input)
    : input.arrayBuffer().then((bytes) => WebAssembly.compile(bytes));
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

/** The garbage collector frees a plan, since a ticket may still need it when its `ClipPlan` is gone. */
const plans = new FinalizationRegistry<number>((plan) => planner.forget(plan));

/** Calls an operation. Returns what `read` makes of the answer, and the address of a plan that was made. */
function call<T>(
  operation: Operation,
  plan: number,
  write: (request: Request) => unknown,
  read: (answer: Answer) => T,
): [read: T, plan: number] {
  const request = new Request();
  write(request);
  const placed = request.into(planner.memory, planner.reserve);
  // Addresses are unsigned.
  const reply = planner.call(OPERATIONS.indexOf(operation), plan, ...placed) >>> 0;
  // The order of `Reply` in `lib.rs`. The answer is copied, since the memory is the planner's and may move.
  const { buffer } = planner.memory;
  const [numbers, numbersLength, bytes, bytesLength, made, isError] = new Uint32Array(buffer, reply, 6);
  const answer = new Answer(
    new Float64Array(buffer, numbers, numbersLength).slice(),
    new Uint8Array(buffer, bytes, bytesLength).slice(),
  );
  planner.release(reply);
  // A bool is one byte.
  if ((isError! & 1) !== 0) throw readError(answer);
  return [read(answer), made!];
}

/** Bytes for a buffer of a plan; none for a place that the host copies to. */
export interface Write {
  buffer: number;
  offset: number;
  bytes: Uint8Array<ArrayBuffer>;
}

/** A plan in the planner's memory: what it describes, how it is updated, and how its results are read. */
export class PlannedClip {
  readonly data: PlanData;
  /** The buffers of the caller that the plan uses. Its bindings count these. */
  readonly given: readonly GPUBuffer[];
  readonly #plan: number;

  private constructor(
    operation: "plan" | "rebound",
    old: number,
    gradients: readonly unknown[],
    write: (request: Request, writeGradients: () => void) => void,
  ) {
    const numbering = new Numbering();
    // Checked first, since the buffers come before the gradients.
    const built = gradients.map((gradient, index) => buildGradient(gradient, index, numbering));
    const [read, plan] = call(
      operation,
      old,
      (request) =>
        write(request, () => {
          numbering.write(request);
          request.list(built, (writeGradient) => writeGradient(request));
        }),
      (answer) => ({ given: answer.list(() => numbering.buffers[answer.number()]!), data: planData(answer) }),
    );
    ({ given: this.given, data: this.data } = read);
    this.#plan = plan;
    plans.register(this, plan);
  }

  static plan(device: GPUDevice, gradients: readonly unknown[], clips: readonly unknown[]): PlannedClip {
    return new PlannedClip("plan", 0, gradients, (request, writeGradients) => {
      describe(device, request);
      writeGradients();
      const whereIs = (group: number) => (clips.length > 1 ? { group } : {});
      request.list(clips, (clip, group) => buildClip(clip, whereIs(group), request));
    });
  }

  /** Plans the same clip of gradients that have moved. */
  rebound(gradients: readonly unknown[]): PlannedClip {
    return new PlannedClip("rebound", this.#plan, gradients, (_, writeGradients) => writeGradients());
  }

  /** Returns the initial contents of all buffers, one after the other. They may be large, and only the first call has them. */
  takeContents(): Uint32Array {
    const bytes = this.#call("takeContents", () => {}, (answer) => answer.bytes());
    return new Uint32Array(bytes.buffer, 0, bytes.length / 4);
  }

  /** Returns the index of the buffer with a result. */
  bufferOf(what: ResultName): number {
    return this.#call("bufferOf", (request) => request.number(RESULTS.indexOf(what)), (answer) => answer.number());
  }

  /** Decodes a result. */
  decode<N extends ResultName>(what: N, bytes: ArrayBuffer): Results[N] {
    return this.#call(
      "decode",
      (request) => request.number(RESULTS.indexOf(what)).bytes(new Uint8Array(bytes)),
      decoders[what],
    );
  }

  /** Returns the writes of an update, or the places of a number to copy. */
  writes(operation: Update | Target, write: (request: Request) => unknown): Write[] {
    return this.#call(operation, write, (answer) =>
      answer.list(() => ({ buffer: answer.number(), offset: answer.number(), bytes: answer.bytes() })),
    );
  }

  /** Returns the error about the first gradient one of whose buffers is refused. Good buffers have empty messages. */
  refusal(messages: readonly string[]): GradclipError | undefined {
    try {
      this.#call("refusal", (request) => request.list(messages, (message) => request.text(message)), () => {});
    } catch (error) {
      return error as GradclipError;
    }
    return undefined;
  }

  #call<T>(operation: Operation, write: (request: Request) => unknown, read: (answer: Answer) => T): T {
    return call(operation, this.#plan, write, read)[0];
  }
}

/** Writes the limits of the device that shape a plan, in the order of the planner's `describe.rs`. */
function describe({ limits, adapterInfo }: GPUDevice, request: Request): void {
  request.number(
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
  );
  // A software adapter compiles large kernels slowly. On Metal a pipeline may allow fewer invocations than the device.
  request.flag(adapterInfo?.isFallbackAdapter === true).flag(adapterInfo?.vendor === "apple");
}
