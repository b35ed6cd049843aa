import { GradclipError, nameOf, type GradientId } from "./errors.js";

/** What an error about a value names: the gradient that the value belongs to, if it is that of one. */
export interface Where {
  gradient?: GradientId;
}

function refuse({ gradient }: Where, what: string, given: unknown, allowed: string): never {
  const of = gradient === undefined ? "" : `gradient ${nameOf(gradient)}: `;
  const shown = typeof given === "string" ? JSON.stringify(given) : typeof given === "object" ? "an object" : String(given);
  throw new GradclipError({
    kind: "Option",
    message: `${of}${what} is ${given === null ? "null" : shown}, but it must be ${allowed}`,
    given,
    allowed,
    ...(gradient && { gradient }),
  });
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
  return Array.isArray(given) ? given : refuse(where, what, given, "an array");
}

/** Checks that a value is an object with no other keys than these. A key that is undefined counts as absent. */
export function fields<K extends string>(
  where: Where,
  what: string,
  given: unknown,
  allowed: readonly K[],
): Partial<Record<K, unknown>> {
  if (typeof given !== "object" || given === null || Array.isArray(given)) return refuse(where, what, given, "an object");
  const entries = Object.entries(given).filter(([, value]) => value !== undefined);
  const unknown = entries.find(([key]) => !(allowed as readonly string[]).includes(key));
  if (unknown === undefined) return Object.fromEntries(entries) as Partial<Record<K, unknown>>;
  const of = where.gradient === undefined ? "" : `gradient ${nameOf(where.gradient)}: `;
  throw new GradclipError({
    kind: "Option",
    message: `${of}${what} has the unknown field ${JSON.stringify(unknown[0])}; allowed: ${listed(allowed)}`,
    given: unknown[0],
    allowed: listed(allowed),
    ...(where.gradient && { gradient: where.gradient }),
  });
}

function listed(names: readonly string[]): string {
  return names.length < 2 ? names.join() : `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`;
}
