// The request for a clip and its result, for both paths.

/** How to clip. */
export type ClipRequest =
  | { method: "norm"; limit: number; normType: number }
  | { method: "value"; limit: number };

/** The outcome of a clip by norm. */
export interface Outcome {
  totalNorm: number;
  clipCoef: number;
}

/** The result of a clip on one path. */
export interface Clipped {
  /** Null for a clip by value, which measures nothing. */
  outcome: Outcome | null;
  /** The elements of each tensor after the clip, little-endian. */
  outputs: Uint8Array[];
}
