import { count, fields, list, number } from "./checks.js";
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

const COUNTS = ["steps", "clipped", "nonFinite", "skipped", "consecutiveSkips", "largestNorm"] as const;
const HISTORY = ["steps", "mean", "deviation"] as const;
/** The other fields of both count something. */
const REAL: readonly string[] = ["largestNorm", "mean", "deviation"];

/** How the numbers of the planner's `results.rs` become results. */
export const decoders: { [N in ResultName]: (numbers: Float64Array) => Results[N] } = {
  record: (numbers) => recordOf(numbers),
  records: (numbers) => chunks(numbers, 14, recordOf),
  tensorStats: (numbers) =>
    chunks(numbers, 4, ([norm, maxMagnitude, nonFinite, zeros]) => ({ norm, maxMagnitude, nonFinite, zeros }) as TensorStats),
  stepCounts: (numbers) => chunks(numbers, COUNTS.length, (of) => named(COUNTS, of)),
  lossScale: (numbers) => named(["scale", "growth", "backoff", "floor", "interval", "goodSteps"] as const, numbers),
  histories: (numbers) => chunks(numbers, HISTORY.length, (of) => named(HISTORY, of)),
  normWindows(numbers) {
    const windows: NormWindow[] = [];
    for (let at = 0; at < numbers.length; at += 1 + numbers[at]!) {
      windows.push({ norms: [...numbers.subarray(at + 1, at + 1 + numbers[at]!)] });
    }
    return windows;
  },
};

function recordOf(of: Float64Array): ClipRecord {
  const firstNonFinite = of[9]!;
  return {
    totalNorm: of[0]!,
    clipCoef: of[1]!,
    factor: of[2]!,
    maxMagnitude: of[3]!,
    clipped: of[4] === 1,
    nonFinite: of[5] === 1,
    skip: of[6] === 1,
    zeroed: of[7] === 1,
    scaleAtFloor: of[8] === 1,
    ...(firstNonFinite >= 0 && { firstNonFinite }),
    normSignificand: of[10]!,
    normExponent: of[11]!,
    factorSignificand: of[12]!,
    factorExponent: of[13]!,
  };
}

function chunks<T>(numbers: Float64Array, length: number, read: (of: Float64Array) => T): T[] {
  const at = (index: number) => numbers.subarray(index * length, (index + 1) * length);
  return Array.from({ length: numbers.length / length }, (_, index) => read(at(index)));
}

function named<K extends string>(names: readonly K[], numbers: Float64Array): Record<K, number> {
  return Object.fromEntries(names.map((name, index) => [name, numbers[index]!])) as Record<K, number>;
}

/** The numbers of saved state, as the planner's `write.rs` reads them. */
export function countsNumbers(given: unknown): Float64Array {
  return numbersOf("stepCounts", given, COUNTS);
}

export function historyNumbers(given: unknown): Float64Array {
  return numbersOf("histories", given, HISTORY);
}

export function windowNumbers(given: unknown): Float64Array {
  const windows = list({}, "normWindows", given).map((window) => {
    const { norms } = fields({}, "a window", window, ["norms"]);
    return list({}, "norms", norms).map((norm) => number({}, "a norm", norm));
  });
  return new Float64Array(windows.flatMap((norms) => [norms.length, ...norms]));
}

function numbersOf<K extends string>(what: string, given: unknown, names: readonly K[]): Float64Array {
  return new Float64Array(
    list({}, what, given).flatMap((value) => {
      const set = fields({}, `an element of ${what}`, value, names);
      return names.map((name) => (REAL.includes(name) ? number : count)({}, name, set[name]));
    }),
  );
}
