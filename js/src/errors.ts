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

/** Characters that could control a terminal, or hide in it, as in `shown.rs`, and halves of surrogate pairs. */
const HIDDEN =
  /["\\\p{Cc}\p{Cs}\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e0fff}]/gu;

/** Puts a text of the caller in quotes, as the crate's messages do. */
export function quoted(text: string): string {
  const short: Record<string, string> = { '"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };
  return `"${text.replace(HIDDEN, (c) => short[c] ?? `\\u{${c.codePointAt(0)!.toString(16)}}`)}"`;
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
  const [message, kind] = [inJavaScript(answer.text()), answer.text()];
  const details: ErrorDetails = { kind, message };
  const parts = [
    () => (details.gradient = gradientId(answer)),
    () => (details.given = answer.number()),
    () => (details.given = shortest(answer.number())),
    () => (details.given = answer.text()),
    () => (details.allowed = answer.number()),
    () => (details.allowed = answer.text()),
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

/** Returns the number with the shortest digits that no other f32 has: -0.1 for the f32 next to it. */
function shortest(number: number): number {
  if (number === 0) return number;
  // At a power of two there is twice as much room above as below, so the nearest digits may be too low, and the next ones right.
  const above = number * (1 + 2 ** -25);
  let digits: number | undefined;
  for (let precision = 1; digits === undefined; precision++) {
    const candidates = [number, above].map((near) => Number(near.toPrecision(precision)));
    digits = candidates.find((candidate) => Object.is(Math.fround(candidate), number));
  }
  return digits;
}

/** Formats an f32 as `shown.rs` does. */
function digitsOf(number: number): string {
  if (Object.is(number, -0)) return "-0";
  const digits = shortest(number);
  const size = Math.abs(digits);
  const isShort = size === 0 || !Number.isFinite(size) || (size >= 1e-4 && size < 1e7);
  return isShort ? `${digits}`.replace("Infinity", "inf") : digits.toExponential().replace("+", "");
}

/**
 * Matches quoted text, the bits of a number (`shown.rs`), names in Rust (`Clip::by_norm`, `max_norm`, `Clip::`), and the crate
 * wgpu.
 */
const IN_RUST = /"(?:[^"\\]|\\.)*"|\x01\d+\x01|\bwgpu\b|(?:\w+::)?\b[a-z]+(?:_[a-z0-9]+)+\b|\w+::(?=[a-z])/g;

function inJavaScript(message: string): string {
  return message.replace(IN_RUST, (text) => {
    if (text.startsWith('"')) return text;
    if (text.startsWith("\x01")) return digitsOf(new Float32Array(Uint32Array.of(Number(text.slice(1, -1))).buffer)[0]!);
    if (text === "wgpu") return "WebGPU";
    const name = text.replace(/^\w+::/, "").replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
    return name === "byGlobalNorm" ? "maxNorm" : name;
  });
}
