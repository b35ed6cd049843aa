import { GradclipError, nameOf, quoted, type GradientId } from "./errors.js";
import type { NumberType } from "./message.js";

/** What an error about a value names: the gradient, or the group of the clip, that the value belongs to. */
export interface Where {
  gradient?: GradientId;
  group?: number;
}

/** Throws the error of a value that is not allowed. */
export function refuse(where: Where, what: string, given: unknown, allowed: string, kind = "Option"): never {
  const message = `${what} is ${shown(given)}, but it must be ${allowed}`;
  throw new GradclipError({ kind, ...located(where, message), given, allowed });
}

/** Puts the name of the gradient or the group before a message. */
export function located({ gradient, group }: Where, message: string): { message: string; gradient?: GradientId } {
  if (gradient !== undefined) return { message: `gradient ${nameOf(gradient)}: ${message}`, gradient };
  return { message: group === undefined ? message : `group ${group}: ${message}` };
}

/** Shows a value in a message. Of an object it is the class. */
export function shown(given: unknown): string {
  if (typeof given === "string") return quoted(given);
  if (typeof given === "bigint") return `${given}n`;
  if (typeof given === "function") return "a function";
  if (typeof given !== "object" || given === null) return String(given);
  const name = className(given);
  return `${/^[AEIOU]/i.test(name) ? "an" : "a"} ${name === "Object" ? "object" : name}`;
}

/** Returns the class of an object that belongs to the language or to WebGPU; "Object" for any other. */
function className(given: object): string {
  return Object.prototype.toString.call(given).slice(8, -1);
}

/** Checks that a value is a number, of any size. */
export function number(where: Where, what: string, given: unknown): number {
  return typeof given === "number" ? given : refuse(where, what, given, "a number");
}

/** Checks that a value is a number of things, which wasm takes as 32 bits. */
export function count(where: Where, what: string, given: unknown): number {
  const isCount = Number.isInteger(given) && (given as number) >= 0 && (given as number) < 2 ** 32;
  return isCount ? (given as number) : refuse(where, what, given, "an integer from 0 to 2^32 - 1");
}

/** Returns the check of a number of this type. */
export function numberOf(type: NumberType): typeof number {
  return type === "Float32" ? number : count;
}

/** Checks that a value is a number of bytes or elements. */
export function size(where: Where, what: string, given: unknown): number {
  const isSize = Number.isSafeInteger(given) && (given as number) >= 0;
  return isSize ? (given as number) : refuse(where, what, given, "an integer from 0 to 2^53 - 1");
}

export function flag(where: Where, what: string, given: unknown): boolean {
  return typeof given === "boolean" ? given : refuse(where, what, given, "true or false");
}

export function text(where: Where, what: string, given: unknown): string {
  return typeof given === "string" ? given : refuse(where, what, given, "a string");
}

export function choice<T extends string>(where: Where, what: string, given: unknown, choices: readonly T[]): T {
  return choices.includes(given as T) ? (given as T) : refuse(where, what, given, listed(choices));
}

export function list(where: Where, what: string, given: unknown): readonly unknown[] {
  // A copy has no holes, which `map` would leave out.
  return Array.isArray(given) ? [...given] : refuse(where, what, given, "an array");
}

/** Checks that a value is a list of gradients, of any kind. */
export function iterable(what: string, given: unknown): unknown[] {
  const isIterable = typeof given === "object" && given !== null && Symbol.iterator in given;
  return isIterable ? [...(given as Iterable<unknown>)] : refuse({}, what, given, "an array or another iterable");
}

/** Checks that a value is an object of WebGPU, which has this method or property. */
export function gpuObject<T>(where: Where, what: string, given: unknown, member: keyof T & string, allowed: string): T {
  const isObject = typeof given === "object" && given !== null && member in given;
  return isObject ? (given as T) : refuse(where, what, given, allowed, "NoGpuObject");
}

/** Checks that a value is an object with no other keys than these. A key that is undefined counts as absent. */
export function fields<K extends string>(
  where: Where,
  what: string,
  given: unknown,
  allowed: readonly K[],
): Partial<Record<K, unknown>> {
  // The contents of a map or of an array are no fields, and would be ignored.
  const isPlain = typeof given === "object" && given !== null && className(given) === "Object";
  if (!isPlain) return refuse(where, what, given, "an object");
  const entries = Object.entries(given).filter(([, value]) => value !== undefined);
  const unknown = entries.find(([key]) => !(allowed as readonly string[]).includes(key));
  if (unknown === undefined) return Object.fromEntries(entries) as Partial<Record<K, unknown>>;
  const message = `${what} has the unknown field ${quoted(unknown[0])}; allowed: ${listed(allowed)}`;
  throw new GradclipError({ kind: "Option", ...located(where, message), given: unknown[0], allowed: listed(allowed) });
}

function listed(names: readonly string[]): string {
  return names.length < 2 ? names.join() : `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`;
}
