import type { Answer } from "./message.js";

/** A plan as the planner describes it: data, from which `realize` makes WebGPU objects. */
export interface PlanData {
  buffers: BufferData[];
  dispatches: Dispatch[];
  /** The dispatches that measure each part, as indices into `dispatches`, as in the next four fields. Empty without parts. */
  parts: number[][];
  /** The dispatches that make the records from all parts; absent for a plan that does not reset its partials. */
  record: number[] | undefined;
  /** The dispatches of the first half, which measure the norm and make the records. */
  norm: number[];
  /** The dispatches of the second half, which write the gradients. */
  scale: number[];
  /** The dispatches of a whole clip. */
  all: number[];
  /** Whether a whole clip is faster as two passes, `norm` and `scale`. */
  wantsTwoPasses: boolean;
  /** The number of records. */
  records: number;
  kernels: KernelData[];
}

/** A buffer to create. */
export interface BufferData {
  label: string;
  /** Bits of `GPUBufferUsage`. */
  usage: number;
  /** In bytes. */
  size: number;
  /** The start of its contents among those of all buffers, in words. Without, the buffer starts zeroed. */
  contents: number | undefined;
  /** Whether a rebound plan keeps it, with its state. */
  isKept: boolean;
  /** For a buffer that the host reads: the bytes of its results. A mark of three words ends the buffer. */
  readable: number | undefined;
}

/** One dispatch, with what it binds in group 0. */
export interface Dispatch {
  kernel: number;
  grid: [number, number];
  bindings: Binding[];
}

/** A range of a buffer: one of the plan's own, one of the caller's, or the filler of a free slot. */
export interface Binding {
  whose: "own" | "given" | "filler";
  index: number;
  offset: number;
  size: number;
}

/** A compute pipeline. */
export interface KernelData {
  label: string;
  wgsl: string;
  constants: Record<string, number>;
  bindings: ("read" | "readWrite" | "uniform")[];
}

/** Reads a plan, in the order of the planner's `describe.rs`. */
export function planData(answer: Answer): PlanData {
  // The fields of an object literal are evaluated in their order.
  const buffers = answer.list(() => ({
    label: answer.text(),
    usage: answer.number(),
    size: answer.number(),
    contents: answer.optional(),
    isKept: answer.flag(),
    readable: answer.optional(),
  }));
  const binding = () => ({
    whose: (["own", "given", "filler"] as const)[answer.number()]!,
    index: answer.number(),
    offset: answer.number(),
    size: answer.number(),
  });
  const dispatches = answer.list(() => ({
    kernel: answer.number(),
    grid: [answer.number(), answer.number()] as [number, number],
    bindings: answer.list(binding),
  }));
  const parts = answer.list(() => answer.indices());
  const [hasRecord, record] = [answer.flag(), answer.indices()];
  return {
    buffers,
    dispatches,
    parts,
    record: hasRecord ? record : undefined,
    norm: answer.indices(),
    scale: answer.indices(),
    all: answer.indices(),
    wantsTwoPasses: answer.flag(),
    records: answer.number(),
    kernels: answer.list(() => ({
      label: answer.text(),
      wgsl: answer.text(),
      constants: Object.fromEntries(answer.list(() => [answer.text(), answer.number()])) as Record<string, number>,
      bindings: answer.list(() => (["read", "readWrite", "uniform"] as const)[answer.number()]!),
    })),
  };
}
