// What a clip is asked for, and what it returns, on either path.

/** How to clip. */
export type ClipRequest =
  | { method: "norm"; limit: number; normType: number }
  | { method: "value"; limit: number };

/** The outcome of a clip by norm. */
export interface Outcome {
  totalNorm: number;
  clipCoef: number;
}

/** What a path makes of a set of gradients. */
export interface Clipped {
  /** Null for a clip by value, which measures nothing. */
  outcome: Outcome | null;
  /** The elements of each tensor after the clip, little-endian. */
  outputs: Uint8Array[];
}
