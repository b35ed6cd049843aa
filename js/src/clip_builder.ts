import { choice, count, fields, flag, list, located, number, numberOf, refuse, text, type Where } from "./checks.js";
import { GradclipError } from "./errors.js";
import type { Request } from "./message.js";
import { SCALE } from "./records.js";

/** Checks what is given, and returns the numbers of the planner. */
type Method = (where: Where, given: unknown) => number[];

/** The methods, in the order of the planner's `clip.rs`. */
const methods: Record<string, Method> = {
  maxNorm: (where, given) => [number(where, "maxNorm", given)],
  byNorm: (where, given) => [number(where, "byNorm", given)],
  byRms: (where, given) => [number(where, "byRms", given)],
  byParameterNorm(where, given) {
    const { clipping, floor } = fields(where, "byParameterNorm", given, ["clipping", "floor"]);
    return [number(where, "clipping", clipping), number(where, "floor", floor)];
  },
  bySuppliedNorm: (where, given) => [number(where, "bySuppliedNorm", given)],
  byValue: (where, given) => [number(where, "byValue", given)],
  byValueRange(where, given) {
    const [low, high, ...rest] = list(where, "byValueRange", given);
    if (rest.length > 0) refuse(where, "the length of byValueRange", 2 + rest.length, "2");
    return [number(where, "low", low), number(where, "high", high)];
  },
};

type Option = (request: Request, where: Where, given: unknown) => void;

/** The options, in the order of the planner's `clip.rs`. Each checks what is given, and writes it. */
const options: Record<string, Option> = {
  normType: (request, where, given) => request.number(number(where, "normType", given)),
  epsilon(request, where, given) {
    const named = typeof given === "string" && choice(where, "epsilon", given, ["pytorch", "none"]);
    request.optional(named === "pytorch" ? undefined : named === "none" ? 0 : number(where, "epsilon", given));
  },
  lossScale: (request, where, given) => request.number(number(where, "lossScale", given)),
  dynamicLossScale: (request, where, given) => writeLossScale(request, where, given),
  // After the dynamic loss scale, which sets a policy of its own.
  nonFinite: (request, where, given) => request.text(text(where, "nonFinite", given)),
  coefficientOnly: (request, where, given) => request.flag(flag(where, "coefficientOnly", given)),
  tensorStats: (request, where, given) => request.flag(flag(where, "tensorStats", given)),
  countSteps: (request, where, given) => request.flag(flag(where, "countSteps", given)),
  zClip(request, where, given) {
    const { alpha, zThreshold, warmUp } = fields(where, "zClip", given, ["alpha", "zThreshold", "warmUp"]);
    request
      .optional(alpha === undefined ? undefined : number(where, "alpha", alpha))
      .optional(zThreshold === undefined ? undefined : number(where, "zThreshold", zThreshold))
      .optional(warmUp === undefined ? undefined : count(where, "warmUp", warmUp));
  },
  autoClip(request, where, given) {
    const { percentile, window } = fields(where, "autoClip", given, ["percentile", "window"]);
    request
      .optional(percentile === undefined ? undefined : number(where, "percentile", percentile))
      .optional(window === undefined ? undefined : count(where, "window", window));
  },
  skipAbove: (request, where, given) => request.number(number(where, "skipAbove", given)),
  maxConsecutiveSkips: (request, where, given) => request.number(count(where, "maxConsecutiveSkips", given)),
};

/** Checks a clip of the caller, and writes its method and its options. With several clips, errors name the group. */
export function buildClip(given: unknown, where: Where, request: Request): void {
  const names = Object.keys(methods);
  const set = fields(where, "the clip", given, [...names, ...Object.keys(options)]);
  const chosen = names.filter((name) => name in set);
  const [method] = chosen;
  if (method === undefined || chosen.length > 1) {
    const allowed = `one of ${names.join(", ")}`;
    const message = `the clip has ${chosen.length === 0 ? "no method" : chosen.join(" and ")}, but it must have ${allowed}`;
    throw new GradclipError({ kind: "Option", ...located(where, message), given: chosen, allowed });
  }
  if ("lossScale" in set && "dynamicLossScale" in set) {
    const message = "lossScale and dynamicLossScale exclude each other";
    throw new GradclipError({ kind: "Option", ...located(where, message) });
  }
  request.number(names.indexOf(method), ...methods[method]!(where, set[method]));
  const chosenOptions = Object.entries(options).flatMap(([name, write], index) => (name in set ? [{ name, write, index }] : []));
  request.list(chosenOptions, ({ name, write, index }) => {
    request.number(index);
    write(request, where, set[name]);
  });
}

/** Checks a dynamic loss scale, and writes it. What is not given has the default of the crate. */
export function writeLossScale(request: Request, where: Where, given: unknown): void {
  const set = fields(where, "dynamicLossScale", given, Object.keys(SCALE) as (keyof typeof SCALE)[]);
  for (const [name, type] of Object.entries(SCALE)) {
    const value = set[name as keyof typeof SCALE];
    request.optional(value === undefined ? undefined : numberOf(type)(where, name, value));
  }
}
