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
  /** Equal for equal kernels. */
  key: string;
  label: string;
  wgsl: string;
  constants: Record<string, number>;
  bindings: ("read" | "readWrite" | "uniform")[];
}

/** Reads the flat form of a plan, which the planner's `describe.rs` writes in the same order. */
export function planData(numbers: Float64Array, texts: string[]): PlanData {
  let [at, text] = [0, 0];
  const next = () => numbers[at++]!;
  const nextText = () => texts[text++]!;
  const flag = () => next() !== 0;
  const optional = () => {
    const number = next();
    return number < 0 ? undefined : number;
  };
  const list = <T>(read: () => T) => Array.from({ length: next() }, read);
  // The fields of an object literal are evaluated in their order.
  const buffers = list(() => ({
    label: nextText(),
    usage: next(),
    size: next(),
    contents: optional(),
    isKept: flag(),
    readable: optional(),
  }));
  const binding = () => ({
    whose: (["own", "given", "filler"] as const)[next()]!,
    index: next(),
    offset: next(),
    size: next(),
  });
  const dispatches = list(() => ({ kernel: next(), grid: [next(), next()] as [number, number], bindings: list(binding) }));
  const parts = list(() => list(next));
  const [hasRecord, record] = [flag(), list(next)];
  return {
    buffers,
    dispatches,
    parts,
    record: hasRecord ? record : undefined,
    norm: list(next),
    scale: list(next),
    all: list(next),
    wantsTwoPasses: flag(),
    records: next(),
    kernels: list(() => ({
      key: nextText(),
      label: nextText(),
      wgsl: nextText(),
      constants: Object.fromEntries(list(() => [nextText(), next()])) as Record<string, number>,
      bindings: list(() => (["read", "readWrite", "uniform"] as const)[next()]!),
    })),
  };
}
