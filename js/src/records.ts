import { fields, list, number, numberOf } from "./checks.js";
import type { Answer, Layout, NumberType, Request } from "./message.js";
import type { DynamicLossScale } from "./options.js";

/** The outcome of a clip by a norm. All norms are those of the gradients without their loss scale. */
export interface ClipRecord {
  /** The norm before clipping; infinite if it exceeds f32. */
  totalNorm: number;
  /** The coefficient that brings the gradients to the limit; exactly 1 if they are within it. */
  clipCoef: number;
  /** The factor that multiplies every element: `clipCoef` without the loss scale, or what the policy sets. */
  factor: number;
  /** The largest magnitude of any element. */
  maxMagnitude: number;
  /** Whether the coefficient differs from 1. */
  clipped: boolean;
  /** Whether a gradient holds an infinity or a NaN. */
  nonFinite: boolean;
  /** Whether the optimizer must skip this step. */
  skip: boolean;
  /** Whether all elements were set to 0. */
  zeroed: boolean;
  /** Whether the gradients overflowed although the dynamic loss scale is at its floor. */
  scaleAtFloor: boolean;
  /** The index of the first gradient that holds an infinity or a NaN. */
  firstNonFinite?: number;
  /** The norm as `normSignificand * 2 ** normExponent`, also beyond f32. */
  normSignificand: number;
  normExponent: number;
  /** The factor as `factorSignificand * 2 ** factorExponent`, also below the normal range of f32. */
  factorSignificand: number;
  factorExponent: number;
}

/** The statistics of one gradient before clipping, without the loss scale. All are 0 for one that is not measured. */
export interface TensorStats {
  norm: number;
  maxMagnitude: number;
  /** The number of infinite and NaN elements. */
  nonFinite: number;
  /** The number of elements that are 0. */
  zeros: number;
}

/** Counts over the steps of a training run. */
export interface StepCounts {
  steps: number;
  clipped: number;
  nonFinite: number;
  skipped: number;
  consecutiveSkips: number;
  largestNorm: number;
}

/** The state of a `zClip`: the statistics of past norms, one for each record. */
export interface NormHistory {
  steps: number;
  mean: number;
  deviation: number;
}

/** The last norms of an `autoClip`, one window for each record. */
export interface NormWindow {
  norms: number[];
}

/** The results of a plan that the host can read. */
export interface Results {
  record: ClipRecord;
  records: ClipRecord[];
  tensorStats: TensorStats[];
  stepCounts: StepCounts[];
  lossScale: Required<DynamicLossScale>;
  histories: NormHistory[];
  normWindows: NormWindow[];
}

export type ResultName = keyof Results;

/** The results, in the order of the planner's `results.rs`. */
export const RESULTS: readonly ResultName[] = [
  "record",
  "records",
  "tensorStats",
  "stepCounts",
  "lossScale",
  "histories",
  "normWindows",
];

/** A struct of the crate, as it is on the device. */
export const SCALE = {
  scale: "Float32",
  growth: "Float32",
  backoff: "Float32",
  floor: "Float32",
  interval: "Uint32",
  goodSteps: "Uint32",
} as const;
const STATS = { norm: "Float32", maxMagnitude: "Float32", nonFinite: "Uint32", zeros: "Uint32" } as const;
const COUNTS = {
  steps: "Uint32",
  clipped: "Uint32",
  nonFinite: "Uint32",
  skipped: "Uint32",
  consecutiveSkips: "Uint32",
  largestNorm: "Float32",
} as const;
const HISTORY = { steps: "Uint32", mean: "Float32", deviation: "Float32" } as const;
const NORM = { norm: "Float32" } as const;

/** How results are read, in the orders of `results.rs`. */
export const decoders: { [N in ResultName]: (answer: Answer) => Results[N] } = {
  record: (answer) => recordOf(answer),
  records: (answer) => answer.list(() => recordOf(answer)),
  tensorStats: (answer) => answer.structs(STATS),
  stepCounts: (answer) => answer.structs(COUNTS),
  lossScale: (answer) => answer.structs(SCALE)[0]!,
  histories: (answer) => answer.structs(HISTORY),
  normWindows: (answer) => answer.list(() => ({ norms: answer.structs(NORM).map(({ norm }) => norm) })),
};

function recordOf(answer: Answer): ClipRecord {
  const record = {
    totalNorm: answer.number(),
    clipCoef: answer.number(),
    factor: answer.number(),
    maxMagnitude: answer.number(),
    clipped: answer.flag(),
    nonFinite: answer.flag(),
    skip: answer.flag(),
    zeroed: answer.flag(),
    scaleAtFloor: answer.flag(),
  };
  const firstNonFinite = answer.optional();
  return {
    ...record,
    ...(firstNonFinite !== undefined && { firstNonFinite }),
    normSignificand: answer.number(),
    normExponent: answer.number(),
    factorSignificand: answer.number(),
    factorExponent: answer.number(),
  };
}

/** Checks saved state, and writes it as the planner's `update.rs` reads it. */
export function writeCounts(request: Request, given: unknown): void {
  writeState(request, "stepCounts", given, COUNTS);
}

export function writeHistories(request: Request, given: unknown): void {
  writeState(request, "histories", given, HISTORY);
}

export function writeWindows(request: Request, given: unknown): void {
  request.list(list({}, "normWindows", given), (window) => {
    const { norms } = fields({}, "a window", window, ["norms"]);
    request.list(list({}, "norms", norms), (norm) => request.number(number({}, "a norm", norm)));
  });
}

function writeState<K extends string>(request: Request, what: string, given: unknown, layout: Layout<K>): void {
  const types = Object.entries(layout) as [K, NumberType][];
  const structs = list({}, what, given).map((value) => {
    const set = fields({}, `an element of ${what}`, value, Object.keys(layout) as K[]);
    const checked = types.map(([name, type]) => [name, numberOf(type)({}, name, set[name])]);
    return Object.fromEntries(checked) as Record<K, number>;
  });
  request.structs(layout, structs);
}
