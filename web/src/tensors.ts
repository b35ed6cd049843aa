// Sets of gradients: the page's type for them, and a generator.

import { hash } from "./rnn/model.js";

export type DType = "f32" | "f16" | "bf16";

/** Bytes in an element. */
export const ELEMENT_BYTES: Record<DType, number> = { f32: 4, f16: 2, bf16: 2 };

/** A gradient in main memory. */
export interface Tensor {
  name: string;
  dtype: DType;
  shape: readonly number[];
  /** Little-endian elements. */
  bytes: Uint8Array;
}

/** The number of elements of a tensor. */
export function elements({ dtype, bytes }: Tensor): number {
  return bytes.length / ELEMENT_BYTES[dtype];
}

/** The most bytes that the page clips. A tab holds several copies of them. */
export const MAX_BYTES = 256 * 2 ** 20;

/** The options of `generate`. */
export interface Recipe {
  tensors: number;
  /** Elements per tensor. */
  elements: number;
  dtype: DType;
  /** Whether one tensor is multiplied by `EXPLOSION`. */
  exploding: boolean;
}

/** The factor of the tensor that explodes. */
const EXPLOSION = 1000;
const SEED = 20260101;

/** Generates normally distributed gradients. The same recipe gives the same bits in every browser. */
export function generate({ tensors, elements, dtype, exploding }: Recipe): Tensor[] {
  const bytes = tensors * elements * ELEMENT_BYTES[dtype];
  if (bytes > MAX_BYTES) {
    throw new Error(`${tensors} tensors of ${elements} elements take ${size(bytes)}; the page clips at most ${size(MAX_BYTES)}`);
  }
  const victim = Math.floor(tensors / 3);
  return Array.from({ length: tensors }, (_, index) => {
    const key = hash(SEED + index);
    // The standard deviations differ from layer to layer, from 0.001 to 0.016.
    let deviation = 2 ** (Math.round((hash(key) / 2 ** 32) * 16) / 4) / 1000;
    if (exploding && index === victim) deviation *= EXPLOSION;
    const values = new Float32Array(elements);
    for (let i = 0; i < elements; i++) values[i] = deviation * normal(hash(key + i), hash(~key + i));
    return { name: `layer${index}.weight`, dtype, shape: [elements], bytes: encode(values, dtype) };
  });
}

/**
 * An approximately normal number of mean 0 and variance 1: the sum of eight uniform bytes. It needs no logarithm, whose
 * last bits differ between browsers.
 */
function normal(a: number, b: number): number {
  const sum = (a & 255) + ((a >>> 8) & 255) + ((a >>> 16) & 255) + (a >>> 24)
    + (b & 255) + ((b >>> 8) & 255) + ((b >>> 16) & 255) + (b >>> 24);
  // The variance of a byte is (256² - 1) / 12.
  return (sum - 1020) / 209.02153;
}

/** Encodes values as little-endian elements, rounded to nearest even. */
export function encode(values: Float32Array, dtype: DType): Uint8Array {
  if (dtype === "f32") return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const narrow = dtype === "bf16" ? bf16Bits : f16Bits;
  return new Uint8Array(Uint16Array.from(bits, narrow).buffer);
}

/** Rounds the bits of a finite f32 to bf16. */
function bf16Bits(bits: number): number {
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** Rounds the bits of a finite f32 to f16. */
function f16Bits(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const exponent = ((bits >>> 23) & 0xff) - 127;
  if (exponent > 15) return sign | 0x7c00;
  // The significand with its implicit bit; a subnormal f16 loses more of it.
  const significand = (bits & 0x7fffff) | 0x800000;
  const shift = exponent < -14 ? Math.min(-1 - exponent, 26) : 13;
  const kept = significand >>> shift;
  const rest = significand & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  const rounded = kept + (rest > half || (rest === half && kept & 1) ? 1 : 0);
  // A carry out of the significand increments the exponent, up to infinity.
  return sign | (exponent < -14 ? rounded : rounded + ((exponent + 14) << 10));
}

/** Decodes little-endian elements. */
export function decode({ dtype, bytes }: Tensor): Float32Array {
  const copy = bytes.slice().buffer;
  if (dtype === "f32") return new Float32Array(copy);
  return Float32Array.from(new Uint16Array(copy), dtype === "bf16" ? bf16Value : f16Value);
}

const word = new DataView(new ArrayBuffer(4));

function bf16Value(bits: number): number {
  word.setUint32(0, bits << 16);
  return word.getFloat32(0);
}

function f16Value(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 0x1f;
  const significand = bits & 0x3ff;
  if (exponent === 31) return significand ? NaN : sign * Infinity;
  return sign * (exponent ? (1024 + significand) * 2 ** (exponent - 25) : significand * 2 ** -24);
}

/** Formats a number of bytes. */
export function size(bytes: number): string {
  const [unit, scale] = bytes < 1024 ? ["bytes", 1] : bytes < 2 ** 20 ? ["KiB", 1024] : ["MiB", 2 ** 20];
  const value = bytes / scale;
  return `${value >= 10 || Number.isInteger(value) ? Math.round(value).toLocaleString("en") : value.toPrecision(2)} ${unit}`;
}
