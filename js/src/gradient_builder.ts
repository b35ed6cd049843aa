import { Gradient as Builder } from "./planner/gradclip_planner.js";
import { choice, count, fields, flag, refuse, size, text, type Where } from "./checks.js";
import type { GradientId } from "./errors.js";
import type { DType } from "./options.js";

const DTYPES: readonly DType[] = ["f32", "f16", "bf16"];
const PLACE = ["buffer", "dtype", "byteOffset", "length"] as const;

/** The buffers of the caller, numbered in the order of their first appearance. */
export class Numbering {
  readonly buffers: GPUBuffer[] = [];
  readonly #indices = new Map<GPUBuffer, number>();

  /** Returns the index of a buffer. */
  of(where: Where, what: string, buffer: unknown): number {
    if (typeof (buffer as GPUBuffer | undefined)?.mapState !== "string") refuse(where, what, buffer, "a GPUBuffer", "NoBuffer");
    const known = this.#indices.get(buffer as GPUBuffer);
    if (known !== undefined) return known;
    const index = this.buffers.push(buffer as GPUBuffer) - 1;
    this.#indices.set(buffer as GPUBuffer, index);
    return index;
  }

  /** What the planner needs to know of each: its size, its usage and whether it is mapped. */
  numbers(): Float64Array {
    const of = ({ size, usage, mapState }: GPUBuffer) => [size, usage, mapState === "unmapped" ? 0 : 1];
    return new Float64Array(this.buffers.flatMap(of));
  }
}

/** How each optional field is handed to the builder. */
const options: Record<string, (gradient: Builder, where: Where, given: unknown, numbering: Numbering) => void> = {
  label: (gradient, where, given) => gradient.label(text(where, "label", given)),
  group: (gradient, where, given) => gradient.group(count(where, "group", given)),
  measured: (gradient, where, given) => gradient.measured(flag(where, "measured", given)),
  scaled: (gradient, where, given) => gradient.scaled(flag(where, "scaled", given)),
  rows: (gradient, where, given) => gradient.rows(size(where, "rows", given)),
  columns: (gradient, where, given) => gradient.columns(size(where, "columns", given)),
  part: (gradient, where, given) => gradient.part(count(where, "part", given)),
  parameter(gradient, where, given, numbering) {
    const set = fields(where, "parameter", given, PLACE);
    gradient.parameter(...placeOf(where, "parameter.buffer", set, numbering));
  },
  partials(gradient, where, given, numbering) {
    const { buffer, elements, byteOffset = 0 } = fields(where, "partials", given, ["buffer", "elements", "byteOffset"]);
    const index = numbering.of(where, "partials.buffer", buffer);
    gradient.partials(index, size(where, "elements", elements), size(where, "byteOffset", byteOffset));
  },
};

/** Makes the planner's gradient of the caller's, which is the one with this index. */
export function buildGradient(given: unknown, index: number, numbering: Numbering): Builder {
  const { label } = (given ?? {}) as { label?: unknown };
  const gradient: GradientId = { index, ...(typeof label === "string" && { label }) };
  const where = { gradient };
  const set = fields(where, "it", given, [...PLACE, ...Object.keys(options)]);
  const builder = new Builder(...placeOf(where, "buffer", set, numbering));
  for (const [name, apply] of Object.entries(options)) {
    if (name in set) apply(builder, where, set[name], numbering);
  }
  return builder;
}

function placeOf(
  where: Where,
  what: string,
  { buffer, dtype = "f32", byteOffset = 0, length }: Partial<Record<(typeof PLACE)[number], unknown>>,
  numbering: Numbering,
): [number, DType, number, number, number | undefined] {
  return [
    numbering.of(where, what, buffer),
    choice(where, "dtype", dtype, DTYPES),
    (buffer as GPUBuffer).size,
    size(where, "byteOffset", byteOffset),
    length === undefined ? undefined : size(where, "length", length),
  ];
}
