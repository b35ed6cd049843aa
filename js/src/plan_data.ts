/** A plan as the planner describes it: data, from which `realize` makes WebGPU objects. */
export interface PlanData {
  buffers: BufferData[];
  kernels: KernelData[];
  dispatches: Dispatch[];
  /** The dispatches that measure each part, as indices, as are the next four. Empty unless gradients are in parts. */
  parts: number[][];
  /** Those that make the records from all parts; absent for a plan that does not reset its partials. */
  record?: number[];
  /** Those of the first half, which measure the norm and make the records. */
  norm: number[];
  /** Those of the second half, which write the gradients. */
  scale: number[];
  /** Those of a whole clip. */
  all: number[];
  /** Whether a whole clip is faster as two passes, `norm` and `scale`. */
  wantsTwoPasses: boolean;
  /** The number of records. */
  records: number;
}

/** A buffer to create. */
export interface BufferData {
  label: string;
  /** Bits of `GPUBufferUsage`. */
  usage: number;
  /** In bytes. */
  size: number;
  /** Where its contents begin among those of the plan, in words; it is zeroed without. */
  contents?: number;
  /** Whether a rebound plan keeps it, with its state. */
  isKept: boolean;
  /** For a buffer that the host reads: the bytes of its results. A mark of three words ends the buffer. */
  readable?: number;
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

/** One dispatch, with what it binds in group 0. */
export interface Dispatch {
  kernel: number;
  grid: [number, number];
  bindings: Binding[];
}

/** A range of a buffer: of the plan (`own`), of the caller (`given`), or of the one that fills free slots. */
export interface Binding {
  own?: number;
  given?: number;
  offset: number;
  size: number;
}

/** A place in a buffer of the plan. */
export interface Place {
  buffer: number;
  offset: number;
}

/** Bytes to write there. */
export interface Write extends Place {
  bytes: number[];
}

/** What the host can read of a plan. */
export type ResultName =
  | "record"
  | "records"
  | "tensorStats"
  | "stepCounts"
  | "lossScale"
  | "histories"
  | "normWindows";
