/** The element type of a gradient. No device feature is needed for any of them. */
export type DType = "f32" | "f16" | "bf16";

/** A gradient: a buffer of the caller with the usage `STORAGE`, or a range of one. It is clipped in place. */
export interface Gradient {
  buffer: GPUBuffer;
  /** The default is `"f32"`. */
  dtype?: DType;
  /** Where the gradient begins; a multiple of the element size. The default is 0. */
  byteOffset?: number;
  /** The number of elements. By default, the gradient extends to the end of the buffer. */
  length?: number;
  /** A name for errors, such as that of the parameter. */
  label?: string;
  /** The index of its clip in the list that `Clipper.prepare` is given. The default is 0. */
  group?: number;
  /** False leaves it out of the norm, but scales it with the others. */
  measured?: boolean;
  /** False counts it in the norm, but never writes it. */
  scaled?: boolean;
  /** The number of rows, which `byNorm`, `byRms` and `byParameterNorm` clip one by one. */
  rows?: number;
  /** The number of columns, which `byNorm`, `byRms` and `byParameterNorm` clip one by one. */
  columns?: number;
  /** The part of the plan that measures it; see `ClipPlan.encodePart`. */
  part?: number;
  /** Its parameter, which only `byParameterNorm` reads. */
  parameter?: Parameter;
  /** Partial sums that your own kernel writes, so that the plan need not read the gradient to measure it. */
  partials?: Partials;
}

/** The parameter of a gradient. It has as many elements as the gradient, of any type, and is only read. */
export interface Parameter {
  buffer: GPUBuffer;
  dtype?: DType;
  byteOffset?: number;
  length?: number;
}

/** Partial sums of runs of `elements` elements, as the Rust crate's `kernels::Producer` writes them. */
export interface Partials {
  buffer: GPUBuffer;
  elements: number;
  byteOffset?: number;
}

/** How gradients are clipped: exactly one of these. */
export type Method =
  /** Scales all gradients by one factor, so that their joint norm is at most this. `torch.nn.utils.clip_grad_norm_`. */
  | { maxNorm: number }
  /** Scales each gradient by its own factor, so that its norm is at most this. `tf.clip_by_norm`. */
  | { byNorm: number }
  /** Scales each gradient so that its root mean square is at most this. `optax.clip_by_block_rms`. */
  | { byRms: number }
  /** Scales each gradient so that its norm is at most `clipping` times that of its parameter (AGC). */
  | { byParameterNorm: { clipping: number; floor: number } }
  /** As `maxNorm`, with a norm that the caller supplies by `ClipPlan.supplyNorm` or `copyNorm`. */
  | { bySuppliedNorm: number }
  /** Clamps every element to `[-value, value]`. `torch.nn.utils.clip_grad_value_`. */
  | { byValue: number }
  /** Clamps every element to `[low, high]`. */
  | { byValueRange: readonly [number, number] };

/** The method and its options. An option that the method cannot honour is an error, and so is an unknown one. */
export type Clip = Method & Options;

/** The options of a clip. Their meaning is that of the Rust crate's `Clip`. */
export interface Options {
  /** The p of the norm: 1, 2, `Infinity` or any other number. The default is 2. */
  normType?: number;
  /** The constant that is added to the norm. The default is 1e-6 (`"pytorch"`), and 0 for `byRms` and `byParameterNorm`. */
  epsilon?: number | "pytorch" | "none";
  /** The policy for infinities and NaNs, which is applied on the GPU. The default is `"propagate"`, as in PyTorch. */
  nonFinite?: "propagate" | "skip" | "zero" | "poison" | "error";
  /** Removes this loss scale in the same pass. */
  lossScale?: number;
  /** Removes a loss scale that the plan updates on the GPU after every step. `nonFinite` is then `"skip"` unless it is given. */
  dynamicLossScale?: DynamicLossScale;
  /** Measures only; the optimizer multiplies by the factor in `ClipPlan.recordBuffer`. */
  coefficientOnly?: boolean;
  /** Also computes the statistics of each gradient. */
  tensorStats?: boolean;
  /** Also counts steps. */
  countSteps?: boolean;
  /** A limit that follows the norms of past steps. */
  zClip?: { alpha?: number; zThreshold?: number; warmUp?: number };
  /** A limit that is a percentile of the last norms. */
  autoClip?: { percentile?: number; window?: number };
  /** Skips a step whose norm exceeds this. */
  skipAbove?: number;
  /** The most steps in a row that `skipAbove` skips. */
  maxConsecutiveSkips?: number;
}

/** The state of a dynamic loss scale, with the defaults of `torch.amp.GradScaler`. */
export interface DynamicLossScale {
  /** The default is 65536. */
  scale?: number;
  /** The default is 2. */
  growth?: number;
  /** The default is 0.5. */
  backoff?: number;
  /** The least scale. The default is 2^-126. */
  floor?: number;
  /** The number of good steps after which the scale grows. The default is 2000. */
  interval?: number;
  /** The number of good steps so far. The default is 0. */
  goodSteps?: number;
}
