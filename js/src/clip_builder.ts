import { Clip as Builder, defaultLossScale } from "./planner/gradclip_planner.js";
import { choice, count, fields, flag, list, located, number, refuse, text, type Where } from "./checks.js";
import { GradclipError } from "./errors.js";

/** How each method makes a builder of the planner. */
const methods: Record<string, (where: Where, given: unknown) => Builder> = {
  maxNorm: (where, given) => Builder.byGlobalNorm(number(where, "maxNorm", given)),
  byNorm: (where, given) => Builder.byNorm(number(where, "byNorm", given)),
  byRms: (where, given) => Builder.byRms(number(where, "byRms", given)),
  byParameterNorm(where, given) {
    const { clipping, floor } = fields(where, "byParameterNorm", given, ["clipping", "floor"]);
    return Builder.byParameterNorm(number(where, "clipping", clipping), number(where, "floor", floor));
  },
  bySuppliedNorm: (where, given) => Builder.bySuppliedNorm(number(where, "bySuppliedNorm", given)),
  byValue: (where, given) => Builder.byValue(number(where, "byValue", given)),
  byValueRange(where, given) {
    const [low, high, ...rest] = list(where, "byValueRange", given);
    if (rest.length > 0) refuse(where, "the length of byValueRange", 2 + rest.length, "2");
    return Builder.byValueRange(number(where, "low", low), number(where, "high", high));
  },
};

/** How each option is handed to the builder. */
const options: Record<string, (clip: Builder, where: Where, given: unknown) => void> = {
  normType: (clip, where, given) => clip.normType(number(where, "normType", given)),
  epsilon(clip, where, given) {
    const named = typeof given === "string" && choice(where, "epsilon", given, ["pytorch", "none"]);
    clip.epsilon(named === "pytorch" ? undefined : named === "none" ? 0 : number(where, "epsilon", given));
  },
  lossScale: (clip, where, given) => clip.lossScale(number(where, "lossScale", given)),
  dynamicLossScale: (clip, where, given) => clip.dynamicLossScale(lossScaleState(where, given)),
  // After the dynamic loss scale, which sets a policy of its own.
  nonFinite: (clip, where, given) => clip.nonFinite(text(where, "nonFinite", given)),
  coefficientOnly: (clip, where, given) => flag(where, "coefficientOnly", given) && clip.coefficientOnly(),
  tensorStats: (clip, where, given) => flag(where, "tensorStats", given) && clip.tensorStats(),
  countSteps: (clip, where, given) => flag(where, "countSteps", given) && clip.countSteps(),
  zClip(clip, where, given) {
    const { alpha, zThreshold, warmUp } = fields(where, "zClip", given, ["alpha", "zThreshold", "warmUp"]);
    clip.zClip(
      alpha === undefined ? undefined : number(where, "alpha", alpha),
      zThreshold === undefined ? undefined : number(where, "zThreshold", zThreshold),
      warmUp === undefined ? undefined : count(where, "warmUp", warmUp),
    );
  },
  autoClip(clip, where, given) {
    const { percentile, window } = fields(where, "autoClip", given, ["percentile", "window"]);
    clip.autoClip(
      percentile === undefined ? undefined : number(where, "percentile", percentile),
      window === undefined ? undefined : count(where, "window", window),
    );
  },
  skipAbove: (clip, where, given) => clip.skipAbove(number(where, "skipAbove", given)),
  maxConsecutiveSkips: (clip, where, given) => clip.maxConsecutiveSkips(count(where, "maxConsecutiveSkips", given)),
};

/** Makes the planner's clip of the caller's. With several clips, errors name the group. */
export function buildClip(given: unknown, where: Where): Builder {
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
  const clip = methods[method]!(where, set[method]);
  for (const [name, apply] of Object.entries(options)) {
    if (name in set) apply(clip, where, set[name]);
  }
  return clip;
}

const SCALE = ["scale", "growth", "backoff", "floor", "interval", "goodSteps"] as const;

/** Returns the six numbers of a dynamic loss scale. What is not given has the default of the crate. */
export function lossScaleState(where: Where, given: unknown): Float64Array {
  const set = fields(where, "dynamicLossScale", given, SCALE);
  const state = defaultLossScale();
  for (const [index, name] of SCALE.entries()) {
    const check = index < 4 ? number : count;
    if (name in set) state[index] = check(where, name, set[name]);
  }
  return state;
}
