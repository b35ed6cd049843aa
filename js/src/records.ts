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

/** What a `zClip` keeps of past norms, one for each record. */
export interface NormHistory {
  steps: number;
  mean: number;
  deviation: number;
}

/** The last norms of an `autoClip`, one window for each record. */
export interface NormWindow {
  norms: number[];
}
