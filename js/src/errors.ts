import type { Answer } from "./message.js";

/** Identifies a gradient in an error: its index in the list that was given and, if it has one, its label. */
export interface GradientId {
  index: number;
  label?: string;
}

/** The fields of an error. */
export interface ErrorDetails {
  /** The name of the error, as in the Rust crate: `MaxNorm`, `OutOfBounds`, `NotSubmitted`, ... */
  kind: string;
  message: string;
  gradient?: GradientId;
  given?: unknown;
  allowed?: unknown;
}

/** An error of preparing, encoding or reading a clip. Its message says what was given and what is allowed. */
export class GradclipError extends Error {
  readonly kind: string;
  readonly gradient?: GradientId;
  readonly given?: unknown;
  readonly allowed?: unknown;

  constructor({ kind, message, gradient, given, allowed }: ErrorDetails) {
    super(message);
    this.name = "GradclipError";
    this.kind = kind;
    if (gradient !== undefined) this.gradient = gradient;
    if (given !== undefined) this.given = given;
    if (allowed !== undefined) this.allowed = allowed;
  }
}

/** Formats a gradient as the crate's messages do: `3 ("encoder.weight")`. */
export function nameOf({ index, label }: GradientId): string {
  return label === undefined ? `${index}` : `${index} (${quoted(label)})`;
}

/** Quotes a label. Characters that could control a terminal, or hide in it, are escaped. */
function quoted(label: string): string {
  const escape = (character: string) => `\\u{${character.codePointAt(0)!.toString(16)}}`;
  return JSON.stringify(label).replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, escape);
}

/** Builds the error of a lost device. */
export function deviceLost(reason: string): GradclipError {
  return new GradclipError({
    kind: "DeviceLost",
    message: `the device was lost or destroyed${reason && `: ${reason.replace(/\.$/, "")}`}`,
  });
}

/**
 * Reads an error, in the order of the planner's `error.rs`. The planner is the Rust crate compiled to wasm, so its messages name
 * options as Rust does: `Clip::by_norm` and `max_norm` are `byNorm` and `maxNorm` here. Labels of the caller, which are quoted,
 * stay as they are.
 */
export function readError(answer: Answer): GradclipError {
  const text = () => withDigits(answer.text());
  const [message, kind] = [inJavaScript(text()), answer.text()];
  const details: ErrorDetails = { kind, message };
  const parts = [
    () => (details.gradient = gradientId(answer)),
    () => (details.given = answer.number()),
    () => (details.given = text()),
    () => (details.allowed = answer.number()),
    () => (details.allowed = text()),
  ];
  // They are numbered from 1, and there is no number after the last.
  for (let part = answer.number(); part; part = answer.number()) parts[part - 1]!();
  return new GradclipError(details);
}

function gradientId(answer: Answer): GradientId {
  const index = answer.number();
  const [label] = answer.list(() => answer.text());
  return { index, ...(label !== undefined && { label }) };
}

/** Replaces the numbers that the planner leaves as the bits of an f32 (`shown.rs`) by their shortest unique digits. */
function withDigits(message: string): string {
  return message.replace(/\x01(\d+)\x01/g, (_, bits: string) => {
    const [number] = new Float32Array(Uint32Array.of(Number(bits)).buffer) as unknown as [number];
    let digits: number;
    let precision = 1;
    do digits = Number(number.toPrecision(precision++));
    while (Math.fround(digits) !== number && !Number.isNaN(number));
    const size = Math.abs(digits);
    if (Object.is(number, -0)) return "-0";
    const isShort = size === 0 || !Number.isFinite(size) || (size >= 1e-4 && size < 1e7);
    return isShort ? `${digits}`.replace("Infinity", "inf") : digits.toExponential().replace("+", "");
  });
}

/** Matches quoted text, names in Rust (`Clip::by_norm`, `max_norm`, `Clip::`), and the crate wgpu. */
const NAMES = /"(?:[^"\\]|\\.)*"|\bwgpu\b|(?:\w+::)?\b[a-z]+(?:_[a-z0-9]+)+\b|\w+::(?=[a-z])/g;

function inJavaScript(message: string): string {
  return message.replace(NAMES, (text) => {
    if (text.startsWith('"')) return text;
    if (text === "wgpu") return "WebGPU";
    const name = text.replace(/^\w+::/, "").replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
    return name === "byGlobalNorm" ? "maxNorm" : name;
  });
}
