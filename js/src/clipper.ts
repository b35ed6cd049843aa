import { fields, iterable, shown } from "./checks.js";
import { Context, messageOf } from "./context.js";
import { GradclipError } from "./errors.js";
import { recommendedLimits } from "./limits.js";
import type { Clip, Gradient } from "./options.js";
import { ClipPlan } from "./plan.js";
import { loadPlanner, type WasmSource } from "./planner.js";

/** Prepares plans for one device, and keeps the compiled kernels. */
export class Clipper {
  readonly #context: Context;

  private constructor(context: Context) {
    this.#context = context;
  }

  /**
   * Creates a clipper for your device. No optional feature is needed, and the default limits are enough.
   *
   * @param options.wasm The source of the planner: a URL, a response, or its bytes. The default is the file beside the module;
   * a bundler or a security policy may need another.
   */
  static async create(device: GPUDevice, options: { wasm?: WasmSource } = {}): Promise<Clipper> {
    if (typeof device?.createCommandEncoder !== "function") {
      const message = `Clipper.create needs a GPUDevice, but was given ${shown(device)}`;
      throw new GradclipError({ kind: "NoDevice", message, given: device, allowed: "a GPUDevice" });
    }
    const { wasm } = fields({}, "the second argument of Clipper.create", options, ["wasm"]);
    try {
      await loadPlanner(wasm as WasmSource | undefined);
    } catch (error) {
      throw new GradclipError({ kind: "NoPlanner", message: `the planner's wasm cannot be loaded: ${messageOf(error)}` });
    }
    return new Clipper(await Context.create(device));
  }

  /** Returns the limits for `adapter.requestDevice({ requiredLimits })` with which clips need the fewest dispatches. */
  static recommendedLimits(adapter: Pick<GPUAdapter, "limits">): Record<string, number> {
    return recommendedLimits(adapter);
  }

  /** The device of the clipper. */
  get device(): GPUDevice {
    return this.#context.device;
  }

  /**
   * Prepares a clip of these gradients: checks them, compiles kernels, allocates and binds buffers. Encode the plan at every
   * step. It stays valid until a gradient moves to another buffer or range; see `ClipPlan.rebind`.
   *
   * With several clips there is one norm, one limit and one record for each group of gradients; `Gradient.group` is the
   * index of its clip. The clips may differ in their limits only.
   *
   * @throws GradclipError With the gradient, what was given and what is allowed. Nothing is written, and no buffer is left.
   */
  async prepare(gradients: Iterable<Gradient>, clip: Clip | readonly Clip[]): Promise<ClipPlan> {
    return ClipPlan.prepare(this.#context, iterable("the list of gradients", gradients), Array.isArray(clip) ? [...clip] : [clip]);
  }
}
