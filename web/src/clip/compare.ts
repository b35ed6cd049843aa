// Compares two sets of elements bit by bit.

import { type Tensor, decode, elements } from "../tensors.js";

export interface Comparison {
  /** The number of elements that differ. */
  different: number;
  elements: number;
  /** The largest difference, relative to the larger magnitude. Infinite if one of the two is not finite. */
  largest: number;
}

/** Compares `outputs` with `others`: the elements of `tensors` after something was done to them. */
export function compare(tensors: readonly Tensor[], outputs: readonly Uint8Array[], others: readonly Uint8Array[]): Comparison {
  const result: Comparison = { different: 0, elements: 0, largest: 0 };
  tensors.forEach((tensor, index) => {
    result.elements += elements(tensor);
    if (sameBytes(outputs[index], others[index])) return;
    const values = decode({ ...tensor, bytes: outputs[index] });
    const expected = decode({ ...tensor, bytes: others[index] });
    values.forEach((value, i) => {
      // The bits of a NaN mean nothing.
      if (Object.is(value, expected[i])) return;
      result.different++;
      const difference = Math.abs(value - expected[i]) / Math.max(Math.abs(value), Math.abs(expected[i]));
      result.largest = Math.max(result.largest, Number.isNaN(difference) ? (value === expected[i] ? 0 : Infinity) : difference);
    });
  });
  return result;
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  // Words are faster; both begin at a buffer's start.
  const words = a.length >> 2;
  if (a.byteOffset % 4 === 0 && b.byteOffset % 4 === 0) {
    const [x, y] = [a, b].map((bytes) => new Uint32Array(bytes.buffer, bytes.byteOffset, words));
    for (let i = 0; i < words; i++) if (x[i] !== y[i]) return false;
    for (let i = words * 4; i < a.length; i++) if (a[i] !== b[i]) return false;
    return true;
  }
  return a.every((byte, i) => byte === b[i]);
}
