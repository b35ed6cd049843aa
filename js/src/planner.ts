import init, { Plan, type InitInput } from "./planner/gradclip_planner.js";
import { fromPlanner, type GradclipError } from "./errors.js";
import type { PlanData, Place, ResultName, Write } from "./plan_data.js";

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
  readonly contents: Uint32Array;
  readonly #plan: Plan;

  private constructor(plan: Plan) {
    this.#plan = plan;
    this.data = fromJson(plan.data());
    this.contents = plan.contents();
  }

  static plan(request: unknown): PlannedClip {
    return new PlannedClip(called(() => new Plan(toJson(request))));
  }

  /** Plans the same clip of gradients that have moved. */
  rebound(request: unknown): PlannedClip {
    return new PlannedClip(called(() => this.#plan.rebound(toJson(request))));
  }

  /** Returns the index of the buffer with a result. */
  bufferOf(what: ResultName): number {
    return called(() => this.#plan.bufferOf(what));
  }

  /** Decodes a result. */
  decode<T>(what: ResultName, bytes: ArrayBuffer): T {
    return fromJson(called(() => this.#plan.decode(what, new Uint8Array(bytes))));
  }

  /** Returns what to write to the buffers of the plan for new values. */
  writes(update: unknown): Write[] {
    return fromJson(called(() => this.#plan.writes(toJson(update))));
  }

  /** Returns where a number of the caller is copied to. */
  targets(target: unknown): Place[] {
    return fromJson(called(() => this.#plan.targets(toJson(target))));
  }

  /** Returns the error about the first gradient one of whose buffers is refused. */
  refusal(messages: (string | null)[]): GradclipError | undefined {
    const error = this.#plan.refusal(toJson(messages));
    return error === undefined ? undefined : (fromPlanner(error) as GradclipError);
  }
}

/** The JSON of a value. Numbers that JSON lacks become objects, which both sides read as numbers. */
function toJson(value: unknown): string {
  return JSON.stringify(value, (_, field: unknown) => {
    if (typeof field === "bigint") return Number(field);
    if (typeof field !== "number" || (Number.isFinite(field) && !Object.is(field, -0))) return field;
    return { number: Object.is(field, -0) ? "-0" : String(field) };
  });
}

function fromJson<T>(json: string): T {
  return JSON.parse(json, (_, field: unknown) => {
    const special = (field as { number?: unknown } | null)?.number;
    return typeof special === "string" ? Number(special) : field;
  }) as T;
}

function called<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw fromPlanner(error);
  }
}
